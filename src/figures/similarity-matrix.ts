import type { Picture } from "../image/picture";
import type { Figure, Rows } from "./figure";
import { round, shapeOf } from "./numbers";
import { pictureUri, sideFor } from "./picture";
import { baseLayout, colorBar, CHOSEN, escapeText, LABELS_APART, WIDTH } from "./style";

/** Pictures or captions on one side: more could be neither seen nor read. */
const MOST = 40;

/**
 * How well each caption fits each picture. scores: [captions][pictures], cosine or probability; captions are the rows, the pictures
 * stand above their columns. The best picture of each caption is outlined. Values are written where there are at most 14 pictures.
 */
export function similarityMatrix(
  scores: Rows,
  captions: readonly string[],
  pictures: readonly Picture[],
  { title = "Captions and pictures", unit = "cosine" } = {},
): Figure {
  const [rows, columns] = shapeOf("similarityMatrix", "scores", scores);
  const odd = [
    ...(captions.length !== rows ? [`${captions.length} captions`] : []),
    ...(pictures.length !== columns ? [`${pictures.length} pictures`] : []),
  ];
  if (odd.length > 0)
    throw new RangeError(`similarityMatrix: ${odd.join(" and ")} for ${rows}x${columns} scores, expected scores[captions][pictures]`);
  if (Math.max(rows, columns) > MOST)
    throw new RangeError(
      `similarityMatrix: ${rows}x${columns} scores, expected at most ${MOST}x${MOST}; choose some rows and columns to look at`,
    );
  const z = Array.from(scores, (row) => Array.from(row, (x) => round(x, 3)));
  const [left, right] = [230, 80];
  const cell = Math.min(64, (WIDTH - left - right) / columns);
  const tall = Math.max(22, Math.min(cell, 44));
  const digits = Array.from(scores).some((row) => Array.from(row).some((x) => Math.abs(x) >= 10)) ? 1 : 2;
  const plain = { showgrid: false, zeroline: false, ...LABELS_APART, automargin: false };
  return {
    data: [
      {
        type: "heatmap",
        z,
        colorscale: "Viridis",
        colorbar: colorBar(escapeText(unit)),
        xgap: 1,
        ygap: 1,
        ...(columns <= 14
          ? { text: z.map((row) => row.map((x) => (x === null ? "" : x.toFixed(digits)))), texttemplate: "%{text}", textfont: { size: 11 } }
          : {}),
        customdata: captions.map((text) => Array(columns).fill(escapeText(text, 60))),
        hovertemplate: "%{customdata}<br>picture %{x}: %{z}<extra></extra>",
      },
    ],
    layout: baseLayout(escapeText(title), "outlined: the best picture of each caption", {
      xaxis: { ...plain, showticklabels: false, range: [-0.5, columns - 0.5] },
      yaxis: {
        ...plain,
        range: [rows - 0.5, -0.5],
        tickmode: "array",
        tickvals: captions.map((_, i) => i),
        ticktext: captions.map((text) => escapeText(text, 32)),
      },
      images: pictures.map((picture, i) => ({
        source: pictureUri("similarityMatrix", picture, sideFor(columns, 96)),
        xref: "x",
        yref: "paper",
        x: i,
        y: 1,
        sizex: 0.9,
        sizey: cell / (rows * tall),
        xanchor: "center",
        yanchor: "bottom",
        sizing: "contain",
      })),
      shapes: Array.from(scores, (row, i) => mark(i, row)).filter((shape) => shape !== undefined),
      width: Math.round(left + right + cell * columns),
      height: Math.round(84 + cell + rows * tall + 20),
      margin: { l: left, r: right, t: Math.round(84 + cell), b: 20 },
    }),
  };
}

/** The outline of the best cell of a row; none in a row without numbers. */
function mark(i: number, row: ArrayLike<number>): object | undefined {
  const best = Array.from(row).reduce((at, x, k) => (x > (row[at] ?? -Infinity) || Number.isNaN(row[at]) ? k : at), 0);
  if (!Number.isFinite(row[best])) return undefined;
  return {
    type: "rect",
    xref: "x",
    yref: "y",
    x0: best - 0.48,
    x1: best + 0.48,
    y0: i - 0.46,
    y1: i + 0.46,
    line: { color: CHOSEN, width: 3 },
  };
}
