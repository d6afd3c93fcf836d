import type { Picture } from "../image/picture";
import type { Figure, Grid, Heads } from "./figure";
import { blockMean, expectIndex, headsOf, largest, patchesOf, round } from "./numbers";
import { axis, cellAxes, panelTitle, placePanels, underPanel } from "./panels";
import { pictureUri, sideFor } from "./picture";
import { baseLayout, escapeText, OVERLAY } from "./style";

/** Cells that all maps of one figure show together: 0.4 MB of JSON. */
const MOST_CELLS = 60_000;

/**
 * Where the class token looks: the mean over the heads and then each head, laid over the picture. pattern: [heads][N][N] of one layer,
 * N = 1 + rows x columns with [CLS] first. `heads` chooses some; `query` 0 is [CLS], any other token may look instead.
 * Each map has its own scale, from 0 to its largest weight, which its title gives; the weight of [CLS] on itself is left out.
 */
export function attentionOver(
  pattern: Heads,
  grid: Grid,
  picture: Picture,
  {
    heads,
    query = 0,
    opacity = 0.6,
    title = "Attention of [CLS] over the picture",
  }: { heads?: readonly number[]; query?: number; opacity?: number; title?: string } = {},
): Figure {
  const [count, queries, keys] = headsOf("attentionOver", pattern);
  if (keys !== patchesOf("attentionOver", grid) + 1)
    throw new RangeError(
      `attentionOver: ${keys} keys for a ${grid[0]}x${grid[1]} grid, expected ${grid[0] * grid[1] + 1} ([CLS] and the patches)`,
    );
  expectIndex("attentionOver", "query", query, queries);
  const chosen = heads ?? Array.from({ length: count }, (_, i) => i);
  if (chosen.length === 0) throw new RangeError("attentionOver: heads is empty, expected the numbers of heads");
  for (const head of chosen) expectIndex("attentionOver", "head", head, count);
  const rows = chosen.map((head) => Array.from(pattern[head][query]));
  const mean = rows[0].map((_, k) => rows.reduce((sum, row) => sum + row[k], 0) / rows.length);
  const maps =
    chosen.length === 1
      ? [{ name: `head ${chosen[0]}`, row: rows[0] }]
      : [{ name: "mean", row: mean }, ...chosen.map((head, i) => ({ name: `head ${head}`, row: rows[i] }))];

  const { boxes, ...size } = placePanels(maps.length, Math.min(maps.length, maps.length > 8 ? 5 : 4), { aspect: grid[0] / grid[1] });
  const uri = pictureUri("attentionOver", picture, sideFor(2 * maps.length, 300));
  const block = Math.max(1, Math.ceil(Math.sqrt((maps.length * grid[0] * grid[1]) / MOST_CELLS)));
  const grids = maps.map(({ row }) => blockMean(inGrid(row, grid), block).map((line) => Array.from(line, (v) => round(v, 3))));
  const note = `brightest = the largest weight on a patch, in the title of each map${block > 1 ? `; averaged over blocks of ${block} × ${block} patches to fit` : ""}`;
  const cells: Grid = [grids[0].length, grids[0][0].length];
  return {
    data: grids.map((z, i) => ({
      type: "heatmap",
      z,
      zmin: 0,
      zmax: largest(z as number[][]) || 1,
      colorscale: OVERLAY,
      opacity,
      showscale: false,
      xaxis: axis("x", i),
      yaxis: axis("y", i),
      hovertemplate: `${maps[i].name}<br>row %{y}, column %{x}: %{z}<extra></extra>`,
    })),
    layout: baseLayout(escapeText(title), note, {
      ...Object.assign({}, ...boxes.map((box, i) => cellAxes(i, box, cells))),
      images: boxes.map((_, i) => underPanel(i, uri, cells)),
      annotations: boxes.map((box, i) => panelTitle(box, `${maps[i].name} · max ${round(largest(grids[i] as number[][]), 2)}`)),
      ...size,
    }),
  };
}

/** The weights on the patches, without the first ([CLS]), as rows of the grid. */
const inGrid = (row: number[], [rows, columns]: Grid): number[][] =>
  Array.from({ length: rows }, (_, r) => row.slice(1 + r * columns, 1 + (r + 1) * columns));
