import type { Picture } from "../image/picture";
import type { Figure, Grid } from "./figure";
import { patchesOf } from "./numbers";
import { cellAxes, underPanel } from "./panels";
import { pictureUri } from "./picture";
import { baseLayout, escapeText } from "./style";

/**
 * The patches a vision transformer cuts the picture into, numbered in the order of the sequence (row by row; [CLS], where the model
 * has one, stands before patch 0). picture: what the model sees, after resize and crop. Hover names row and column.
 */
export function patchGrid(picture: Picture, grid: Grid, { title = "" } = {}): Figure {
  const count = patchesOf("patchGrid", grid);
  const [rows, columns] = grid;
  const cells = Array.from({ length: count }, (_, i) => i);
  const size = Math.max(7, Math.min(16, Math.floor(200 / Math.max(rows, columns))));
  const each = Math.max(1, Math.ceil(Math.max(rows, columns) / 32)); // above 32 a side the numbers would be dust
  const labelled = (i: number) => Math.floor(i / columns) % each === 0 && (i % columns) % each === 0;
  const [w, h] = [560, Math.round((560 * rows) / columns)];
  return {
    data: [
      {
        type: "scatter",
        mode: "text",
        x: cells.map((i) => i % columns),
        y: cells.map((i) => Math.floor(i / columns)),
        text: cells.map((i) => (labelled(i) ? String(i) : "")),
        textfont: { size, color: cells.map((i) => inkOn(picture, grid, i)) },
        customdata: cells,
        hovertemplate: "patch %{customdata}<br>row %{y}, column %{x}<extra></extra>",
      },
    ],
    layout: baseLayout(escapeText(title) || `${count} patches, ${rows} × ${columns}`, patchSize(picture, grid), {
      ...cellAxes(0, { x: [0, 1], y: [0, 1] }, grid),
      images: [underPanel(0, pictureUri("patchGrid", picture), grid)],
      shapes: [...lines(rows, columns, "y"), ...lines(columns, rows, "x")],
      width: w + 36,
      height: h + 96,
      margin: { l: 18, r: 18, t: 78, b: 18 },
    }),
  };
}

const patchSize = ({ width, height }: Picture, [rows, columns]: Grid): string =>
  `each covers ${round(width / columns)} × ${round(height / rows)} of ${width} × ${height} pixels`;
const round = (x: number): string => String(Math.round(x * 10) / 10);

/** Black on a light patch, white on a dark one (mean luma, ITU-R BT.601). */
function inkOn({ width, height, data }: Picture, [rows, columns]: Grid, patch: number): string {
  const [row, column] = [Math.floor(patch / columns), patch % columns];
  let [sum, count] = [0, 0];
  for (let y = Math.floor((row * height) / rows); y < Math.floor(((row + 1) * height) / rows); y++)
    for (let x = Math.floor((column * width) / columns); x < Math.floor(((column + 1) * width) / columns); x++) {
      const at = (y * width + x) * 3;
      sum += 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
      count++;
    }
  return sum > 130 * count ? "#000000" : "#FFFFFF";
}

/** The lines between `count` cells along one axis, across `length` cells of the other. */
function lines(count: number, length: number, along: "x" | "y"): object[] {
  const across = along === "x" ? "y" : "x";
  return Array.from({ length: count + 1 }, (_, i) => ({
    type: "line",
    xref: "x",
    yref: "y",
    [`${along}0`]: i - 0.5,
    [`${along}1`]: i - 0.5,
    [`${across}0`]: -0.5,
    [`${across}1`]: length - 0.5,
    line: { color: "rgba(128,128,128,0.85)", width: 1 },
  }));
}
