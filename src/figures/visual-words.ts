import type { ImageSpan } from "../models/loaded";
import type { Figure, Grid, Rows } from "./figure";
import { expectIndex, round, shapeOf } from "./numbers";
import { cellAxes, underPanel } from "./panels";
import { spreadOver } from "./picture-map";
import { pictureUri } from "./picture";
import { baseLayout, CATEGORIES, CHOSEN, colorBar, escapeText, GRIDLINE, LABELS_APART, OVERLAY, QUIET, WIDTH } from "./style";

/** Words that the hover of a token lists. */
const LISTED = 5;
const SIDE = 56;

/** Of each token: its entropy in nats, and its words by falling share. */
export type TokenWords = { entropy: number; words: { word: number; share: number }[] };

/** Entropy and top words of each token. probabilities: [tokens][words], rows sum to 1 (the tap `visual_tokens` of Ovis). */
export function topWords(probabilities: Rows, top = 8): TokenWords[] {
  const [, words] = shapeOf("topWords", "probabilities", probabilities);
  const count = Math.min(top, words);
  return Array.from(probabilities, (row) => {
    let entropy = 0;
    const best: { word: number; share: number }[] = [];
    for (let word = 0; word < words; word++) {
      const share = row[word];
      if (share > 0) entropy -= share * Math.log(share);
      if (best.length === count && share <= best[count - 1].share) continue;
      let at = best.length;
      while (at > 0 && best[at - 1].share < share) at--;
      best.splice(at, 0, { word, share });
      if (best.length > count) best.pop();
    }
    return { entropy, words: best };
  });
}

/**
 * A picture as visual words (Ovis, Lu et al. 2024): on the left how many words each part of the picture is spread over (exp of the entropy: 1 = one word
 * for certain), on the right the words of one token; hover lists those of any. probabilities: [tokens][words], of the tap `visual_tokens`, in the order
 * of the tokens that show something. image: the picture and what each token shows. token: the one whose words are drawn; default: the surest.
 * names: texts for words, where somebody has given them any.
 */
export function visualWords(
  probabilities: Rows,
  { picture, places: all }: Pick<ImageSpan, "picture" | "places">,
  {
    token,
    top = 8,
    names,
    title = "The picture as visual words",
  }: { token?: number; top?: number; names?: (word: number) => string; title?: string } = {},
): Figure {
  const [tokens, words] = shapeOf("visualWords", "probabilities", probabilities);
  const places = all.filter((place) => place !== undefined);
  if (places.length !== tokens)
    throw new RangeError(`visualWords: ${tokens} rows for ${places.length} tokens that show a part of the picture, expected one for each`);
  const found = topWords(probabilities, top);
  const chosen = token ?? found.reduce((best, one, i) => (one.entropy < found[best].entropy ? i : best), 0);
  expectIndex("visualWords", "token", chosen, tokens);
  const nameOf = (word: number) => (names ? escapeText(names(word), 24) : `word ${word}`);
  // The number of words at a cell: the mean over the tokens that show it, by area.
  const area = places.map(({ width, height }) => width * height);
  const sums = spreadOver(
    area.map((a, i) => a * Math.exp(found[i].entropy)),
    places,
    picture,
    SIDE,
  );
  const weights = spreadOver(area, places, picture, SIDE);
  const z = sums.cells.map((row, r) =>
    Array.from(row, (x, c) => (weights.cells[r][c] > 0 ? round((x * sums.total) / (weights.cells[r][c] * weights.total), 3) : null)),
  );
  const cells: Grid = [z.length, z[0].length];
  const [scaleX, scaleY] = [cells[1] / picture.width, cells[0] / picture.height];
  const [left, gap, beside] = [18, 150, 260];
  const w = Math.min(WIDTH - left - gap - beside - 24, 440);
  const h = Math.max(180, Math.min(520, (w * picture.height) / picture.width));
  const plot = w + gap + beside;
  const { words: bars, entropy } = found[chosen];
  const place = places[chosen];
  return {
    data: [
      {
        type: "heatmap",
        z,
        zmin: 1,
        colorscale: OVERLAY,
        opacity: 0.6,
        colorbar: colorBar("words", { x: w / plot + 0.01, xanchor: "left", len: 1 }),
        hoverinfo: "skip",
      },
      {
        type: "scatter",
        mode: "markers",
        x: places.map((p) => (p.left + p.width / 2) * scaleX - 0.5),
        y: places.map((p) => (p.top + p.height / 2) * scaleY - 0.5),
        marker: { opacity: 0, size: 14 },
        customdata: found.map(({ words: best }, i) =>
          [
            `token ${i}, tile ${places[i].tile}`,
            ...best.slice(0, LISTED).map(({ word, share }) => `${nameOf(word)} ${round(100 * share, 3)} %`),
          ].join("<br>"),
        ),
        hovertemplate: "%{customdata}<extra></extra>",
      },
      {
        type: "bar",
        orientation: "h",
        xaxis: "x2",
        yaxis: "y2",
        x: bars.map(({ share }) => round(share, 4)),
        y: bars.map((_, i) => i),
        marker: { color: CATEGORIES[0] },
        width: 0.66,
        text: bars.map(({ share }) => `${round(100 * share, 3)} %`),
        textposition: "outside",
        cliponaxis: false,
        customdata: bars.map(({ word }) => nameOf(word)),
        hovertemplate: "%{customdata}: %{x}<extra></extra>",
      },
    ],
    layout: baseLayout(
      escapeText(title),
      `${tokens} tokens, ${words} visual words; outlined: token ${chosen}, spread over ${round(Math.exp(entropy), 3)} words`,
      {
        ...cellAxes(0, { x: [0, w / plot], y: [0, 1] }, cells),
        xaxis2: {
          domain: [(w + gap) / plot, 1 - 44 / plot],
          anchor: "y2",
          range: [0, Math.max(bars[0].share * 1.05, 1e-6)],
          tickformat: ".0%",
          nticks: 4,
          gridcolor: GRIDLINE,
          zeroline: false,
          color: QUIET,
        },
        yaxis2: {
          domain: [0, 1],
          anchor: "x2",
          range: [bars.length - 0.5, -0.5],
          tickmode: "array",
          tickvals: bars.map((_, i) => i),
          ticktext: bars.map(({ word }) => nameOf(word)),
          ...LABELS_APART,
          showgrid: false,
          zeroline: false,
          automargin: false,
        },
        images: [underPanel(0, pictureUri("visualWords", picture), cells)],
        shapes: [
          {
            type: "rect",
            xref: "x",
            yref: "y",
            x0: place.left * scaleX - 0.5,
            x1: (place.left + place.width) * scaleX - 0.5,
            y0: place.top * scaleY - 0.5,
            y1: (place.top + place.height) * scaleY - 0.5,
            line: { color: CHOSEN, width: 3 },
          },
        ],
        width: Math.round(left + plot + 24),
        height: Math.round(h + 78 + 40),
        margin: { l: left, r: 24, t: 78, b: 40 },
      },
    ),
  };
}
