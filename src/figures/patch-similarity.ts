import type { Picture } from "../image/picture";
import type { Figure, Grid, Rows } from "./figure";
import { dot, expectFinite, expectIndex, expectPatches, shapeOf, unitRows } from "./numbers";
import { axis, cellAxes, NOTHING, panelTitle, placePanels, underPanel } from "./panels";
import { pictureUri, sideFor } from "./picture";
import { baseLayout, colorBar, escapeText, INK, OVERLAY } from "./style";

/** Whole hundredths of cosine that a figure may carry twice (once for clicks, once for the slider): 0.6 MB of JSON. */
const MOST_CELLS = 100_000;

/**
 * Which patches resemble the one you choose: click a patch in the left picture or move the slider, and the right one shows the cosine
 * of its embedding with all others. It works without a server, in a saved notebook and in exported HTML, because the maps of all
 * patches are in the figure (of every second or third patch where the grid is fine; the note says so). Printed, it shows `patch`.
 * embeddings: [rows x columns, D] without [CLS]. Colours are hundredths of cosine.
 */
export function patchSimilarity(
  embeddings: Rows,
  grid: Grid,
  picture: Picture,
  { patch, title = "Cosine to the chosen patch" }: { patch?: number; title?: string } = {},
): Figure {
  const [count] = shapeOf("patchSimilarity", "embeddings", embeddings);
  expectPatches("patchSimilarity", "embeddings", count, grid);
  expectFinite("patchSimilarity", "embeddings", embeddings);
  const [rows, columns] = grid;
  const stride = strideFor(grid);
  const choices = Array.from({ length: count }, (_, i) => i).filter(
    (i) => onStride(Math.floor(i / columns), stride) && onStride(i % columns, stride),
  );
  const start = patch ?? nearest(choices, (rows - 1) / 2, (columns - 1) / 2, columns);
  expectIndex("patchSimilarity", "patch", start, count);
  const unit = unitRows(embeddings);
  const { boxes, ...size } = placePanels(2, 2, { aspect: rows / columns, right: 92, bottom: 92, most: 388 });
  const steps = choices.map((at, i) => ({ method: "update", label: String(at), args: change(unit, grid, at, i) }));
  const uri = pictureUri("patchSimilarity", picture, sideFor(4, 388));
  const note = `${rows} × ${columns} patches${stride > 1 ? `, every ${stride}${stride === 2 ? "nd" : stride === 3 ? "rd" : "th"} can be chosen` : ""}`;
  return {
    data: [map(cosines(unit, grid, start), lowest(unit)), NOTHING],
    layout: baseLayout(escapeText(title), note, {
      ...Object.assign({}, ...boxes.map((box, i) => cellAxes(i, box, grid))),
      images: [underPanel(0, uri, grid), underPanel(1, uri, grid)],
      shapes: frames(start, grid, (boxes[0].x[1] - boxes[0].x[0]) * (size.width - size.margin.l - size.margin.r)),
      annotations: ["click a patch", "cosine with the others"].map((text, i) => panelTitle(boxes[i], text)),
      updatemenus: steps.map((step) => button(step, boxes[0], grid)),
      sliders: [
        {
          active: Math.max(0, choices.indexOf(start)),
          steps,
          x: 0,
          len: boxes[1].x[1],
          xanchor: "left",
          y: 0,
          yanchor: "top",
          pad: { t: 18, b: 0, l: 0, r: 0 },
          currentvalue: { prefix: "patch ", font: { size: 12.5, color: INK }, xanchor: "left", offset: 6 },
          ticklen: 0,
          minorticklen: 0,
          font: { color: "rgba(0,0,0,0)", size: 1 },
        },
      ],
      ...size,
    }),
  };
}

/** The map in panel 1. One colour scale for all patches: from `low` (and below) to 100. */
function map(z: number[][], low: number): object {
  return {
    type: "heatmap",
    z,
    zmin: low,
    zmax: 100,
    colorscale: OVERLAY,
    opacity: 0.72,
    xaxis: axis("x", 1),
    yaxis: axis("y", 1),
    colorbar: colorBar("cosine<br>× 100"),
    hovertemplate: "row %{y}, column %{x}<br>cosine × 100: %{z}<extra></extra>",
  };
}

/** What a click or a slider step changes: the map, both outlines, and the slider's place. */
function change(unit: Float64Array[], grid: Grid, at: number, step: number): unknown[] {
  const [row, column] = [Math.floor(at / grid[1]), at % grid[1]];
  const moved: Record<string, number> = { "sliders[0].active": step };
  for (const shape of [0, 1, 2, 3]) Object.assign(moved, { [`shapes[${shape}].xanchor`]: column, [`shapes[${shape}].yanchor`]: row });
  return [{ z: [cosines(unit, grid, at)] }, moved, [0]];
}

function cosines(unit: Float64Array[], [rows, columns]: Grid, at: number): number[][] {
  return Array.from({ length: rows }, (_, r) =>
    Array.from({ length: columns }, (_, c) => Math.round(100 * dot(unit[r * columns + c], unit[at])) || 0),
  );
}

/** The frame around the chosen patch in both panels, white in black so that it is seen on any picture. It moves by its anchor alone. */
function frames(at: number, [, columns]: Grid, panel: number): object[] {
  const half = panel / columns / 2;
  return [0, 1].flatMap((i) =>
    [
      { color: "#000000", width: 5 },
      { color: "#FFFFFF", width: 2 },
    ].map((line) => ({
      type: "rect",
      xref: axis("x", i),
      yref: axis("y", i),
      xsizemode: "pixel",
      ysizemode: "pixel",
      xanchor: at % columns,
      yanchor: Math.floor(at / columns),
      x0: -half,
      x1: half,
      y0: -half,
      y1: half,
      line,
      layer: "above",
    })),
  );
}

/** Hundredths of cosine that 98 % of all pairs reach: a single odd patch does not take all the contrast. */
function lowest(unit: Float64Array[]): number {
  const all = Float64Array.from(unit.flatMap((a, i) => unit.slice(0, i).map((b) => dot(a, b)))).sort();
  return all.length > 0 ? Math.min(99, Math.floor(100 * all[Math.floor(all.length * 0.02)])) : 0;
}

/** An invisible button over a patch: the only thing in a plotly figure that a click can use without a server. */
function button(step: { args: unknown[] }, box: { x: [number, number]; y: [number, number] }, [rows, columns]: Grid): object {
  const at = Number((step as { label?: string }).label);
  const [row, column] = [Math.floor(at / columns), at % columns];
  return {
    type: "buttons",
    showactive: false,
    x: box.x[0] + ((column + 0.5) / columns) * (box.x[1] - box.x[0]),
    y: box.y[1] - ((row + 0.5) / rows) * (box.y[1] - box.y[0]),
    xanchor: "center",
    yanchor: "middle",
    pad: { l: 0, r: 0, t: 0, b: 0 },
    bgcolor: "rgba(0,0,0,0)",
    bordercolor: "rgba(0,0,0,0)",
    borderwidth: 0,
    buttons: [{ method: "update", label: " ", args: step.args }],
  };
}

/** Every n-th patch in both directions, so that the maps stay small and a button (30 pixels) does not cover its neighbours. */
function strideFor([rows, columns]: Grid): number {
  for (let stride = 1; ; stride++) {
    const choices = Math.ceil(rows / stride) * Math.ceil(columns / stride);
    if (choices * rows * columns <= MOST_CELLS && Math.max(rows, columns) / stride <= 18) return stride;
  }
}

const onStride = (i: number, stride: number): boolean => i % stride === Math.floor((stride - 1) / 2);

function nearest(choices: number[], row: number, column: number, columns: number): number {
  const distance = (i: number) => (Math.floor(i / columns) - row) ** 2 + ((i % columns) - column) ** 2;
  return choices.reduce((best, i) => (distance(i) < distance(best) ? i : best));
}
