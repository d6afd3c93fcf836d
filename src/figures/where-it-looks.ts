import type { ImageSpan } from "../models/loaded";
import type { Figure, Grid, Rows } from "./figure";
import { largest, round, shapeOf } from "./numbers";
import { axis, cellAxes, panelTitle, placePanels, underPanel } from "./panels";
import { type PictureMap, spreadOver } from "./picture-map";
import { pictureUri, sideFor } from "./picture";
import { baseLayout, colorBar, escapeText, OVERLAY } from "./style";

/** Cells that all maps of one figure show together. */
const MOST_CELLS = 60_000;
/** Maps in one figure. */
const MOST_MAPS = 32;

/** What is needed of an `ImageSpan`. */
export type Looked = Pick<ImageSpan, "picture" | "start" | "places">;

/**
 * Where on the picture each token of an answer looked: its attention over the image tokens, laid back through tiles and thumbnail onto the original
 * picture; the mean of all tokens first. 1 is what an even look at the picture would give; all maps share one scale unless `scale` is "own". The share of
 * the attention that falls on the picture stands in each title.
 *
 * A look is not yet a use: `ablate(answerWithout(model, asked), places of the brightest tokens, ...)` tells whether the answer needed what it looked at.
 *
 * rows: [tokens][keys], of `meanPattern(await answerAttention(model, asked))`, or any numbers, 0 or more, one for each key; tokens: their texts;
 * image: of `prompt.images`.
 */
export function whereItLooks(
  rows: Rows,
  tokens: readonly string[],
  image: Looked,
  {
    opacity = 0.65,
    scale = "common",
    columns,
    title = "Where the answer looks",
  }: { opacity?: number; scale?: "common" | "own"; columns?: number; title?: string } = {},
): Figure {
  const [count, keys] = shapeOf("whereItLooks", "rows", rows);
  const { picture, start, places } = image;
  const end = start + places.length;
  const odd = [
    ...(tokens.length === count ? [] : [`${tokens.length} tokens for ${count} rows`]),
    ...(count <= MOST_MAPS ? [] : [`${count} rows, at most ${MOST_MAPS} fit one figure: choose some`]),
    ...(end <= keys ? [] : [`the picture's tokens reach to ${end}, the rows have ${keys} keys`]),
  ];
  if (odd.length) throw new RangeError(`whereItLooks: ${odd.join("; ")}`);
  const seen = Array.from(rows, (row) => Float64Array.from(places, (_, i) => row[start + i]));
  const mean = Float64Array.from(places, (_, i) => seen.reduce((sum, row) => sum + row[i], 0) / count);
  const maps = [
    ...(count > 1 ? [{ name: "mean of all", weights: mean }] : []),
    ...seen.map((weights, i) => ({ name: escapeText(shown(tokens[i]), 16), weights })),
  ];
  const side = Math.max(8, Math.min(56, Math.floor(Math.sqrt(MOST_CELLS / maps.length))));
  const spread = maps.map(({ weights }) => spreadOver(weights, places, picture, side));
  const most = Math.max(...spread.map(({ cells }) => largest(cells)), 0) || 1;
  const cells: Grid = [spread[0].cells.length, spread[0].cells[0].length];
  const across = columns ?? Math.min(maps.length, maps.length > 12 ? 6 : 4);
  const { boxes, ...size } = placePanels(maps.length, across, {
    aspect: picture.height / picture.width,
    right: scale === "common" ? 84 : 18,
  });
  const uri = pictureUri("whereItLooks", picture, sideFor(2 * maps.length, 320));
  return {
    data: spread.map((map, i) => ({
      type: "heatmap",
      z: map.cells.map((row) => Array.from(row, (x) => round(x, 3))),
      zmin: 0,
      zmax: round(scale === "common" ? most : largest(map.cells) || 1, 3),
      colorscale: OVERLAY,
      opacity,
      showscale: scale === "common" && i === 0,
      colorbar: colorBar("× even"),
      xaxis: axis("x", i),
      yaxis: axis("y", i),
      hovertemplate: `${maps[i].name}<br>%{z} × an even look<extra></extra>`,
    })),
    layout: baseLayout(escapeText(title), note(spread, scale), {
      ...Object.assign({}, ...boxes.map((box, i) => cellAxes(i, box, cells))),
      images: boxes.map((_, i) => underPanel(i, uri, cells)),
      annotations: boxes.map((box, i) =>
        panelTitle(
          box,
          `${maps[i].name} · ${round(100 * spread[i].onPicture, 2)} %${scale === "own" ? ` · max ${round(largest(spread[i].cells), 2)}` : ""}`,
          across > 4 ? 10.5 : 12,
        ),
      ),
      ...size,
    }),
  };
}

const shown = (token: string): string => token.replace(/ /g, "·").replace(/\n/g, "↵");

function note(maps: PictureMap[], scale: "common" | "own"): string {
  const lost = maps.some(({ total, onPicture }) => total - onPicture > 0.005 * total);
  return `% = share of the attention on the picture${lost ? ", tokens that show nothing and padding left out" : ""}; ${
    scale === "common" ? "one scale for all" : "each map has its own scale"
  }`;
}
