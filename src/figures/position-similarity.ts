import type { Figure, Grid, Rows } from "./figure";
import { dot, expectFinite, expectPatches, round, shapeOf, unitRows } from "./numbers";
import { baseLayout, colorBar, escapeText, LABELS_APART, SIGNED } from "./style";

/** Cells that one figure shows: 0.7 MB of JSON. */
const MOST_CELLS = 120_000;

/**
 * How alike the position embeddings are (Dosovitskiy et al. 2021, figure 7): one small map for each patch, at the place of that patch,
 * with the cosine of its position embedding to those of all patches. embeddings: [rows x columns, D] without [CLS].
 */
export function positionSimilarity(
  embeddings: Rows,
  grid: Grid,
  { title = "Position embeddings: cosine with every other position" } = {},
): Figure {
  const [count] = shapeOf("positionSimilarity", "embeddings", embeddings);
  expectPatches("positionSimilarity", "embeddings", count, grid);
  expectFinite("positionSimilarity", "embeddings", embeddings);
  const [rows, columns] = grid;
  const unit = unitRows(embeddings);
  const stride = Math.ceil(Math.sqrt((count * count) / MOST_CELLS)); // show the maps of every stride-th patch
  const [shownRows, shownColumns] = [Math.ceil(rows / stride), Math.ceil(columns / stride)];
  const gap = 1; // an empty cell between the maps
  const z: (number | null)[][] = Array.from({ length: shownRows * (rows + gap) - gap }, () =>
    Array(shownColumns * (columns + gap) - gap).fill(null),
  );
  for (let a = 0; a < shownRows; a++)
    for (let b = 0; b < shownColumns; b++)
      for (let r = 0; r < rows; r++)
        for (let c = 0; c < columns; c++)
          z[a * (rows + gap) + r][b * (columns + gap) + c] = round(dot(unit[a * stride * columns + b * stride], unit[r * columns + c]), 2);
  const ticks = (shown: number, side: number) => ({
    tickmode: "array",
    ticktext: Array.from({ length: shown }, (_, i) => String(i * stride)),
    tickvals: Array.from({ length: shown }, (_, i) => i * (side + gap) + (side - 1) / 2),
    showgrid: false,
    zeroline: false,
    ...LABELS_APART,
  });
  return {
    data: [
      {
        type: "heatmap",
        z,
        zmin: -1,
        zmax: 1,
        zmid: 0,
        colorscale: SIGNED,
        colorbar: colorBar("cosine"),
        hoverongaps: false,
        hovertemplate: "cosine %{z}<extra></extra>",
      },
    ],
    layout: baseLayout(
      escapeText(title),
      stride > 1
        ? `${rows} × ${columns} positions; the maps of every ${stride}${stride === 2 ? "nd" : stride === 3 ? "rd" : "th"} row and column are shown`
        : `${rows} × ${columns} positions`,
      {
        xaxis: { title: { text: "column of the patch" }, ...ticks(shownColumns, columns) },
        yaxis: { title: { text: "row of the patch" }, ...ticks(shownRows, rows), range: [z.length - 0.5, -0.5] },
        width: 760,
        height: Math.round(600 * (shownRows / shownColumns) * (rows / columns)) + 130,
        margin: { l: 64, r: 96, t: 78, b: 52 },
      },
    ),
  };
}
