/** Small multiples: where each panel stands, its axes, its title, and a picture under it. */
import type { Grid } from "./figure";
import { INK, WIDTH } from "./style";

/** A panel's place, as plotly's fractions of the plot area: x to the right, y upwards. */
export type Box = { x: [number, number]; y: [number, number] };
/** All panels with the size of the figure they need, in pixels. */
export type Panels = { boxes: Box[]; width: number; height: number; margin: { l: number; r: number; t: number; b: number } };

/**
 * Places `count` panels in rows of `columns`. aspect: height / width of a panel. left, right, top, bottom: margins in pixels;
 * gapX, gapY: pixels between panels (a title stands in gapY); most: the widest a panel may become, in pixels.
 */
export function placePanels(
  count: number,
  columns: number,
  { aspect = 1, left = 18, right = 18, top = 104, bottom = 18, gapX = 14, gapY = 32, most = 420 } = {},
): Panels {
  const rows = Math.ceil(count / columns);
  const panel = Math.min(most, (WIDTH - left - right - gapX * (columns - 1)) / columns);
  const [w, h] = [WIDTH - left - right, rows * panel * aspect + (rows - 1) * gapY];
  const boxes = Array.from({ length: count }, (_, i): Box => {
    const x = ((i % columns) * (panel + gapX)) / w;
    const y = 1 - (Math.floor(i / columns) * (panel * aspect + gapY)) / h;
    return { x: [x, x + panel / w], y: [Math.max(0, y - (panel * aspect) / h), y] };
  });
  return { boxes, width: WIDTH, height: Math.round(h + top + bottom), margin: { l: left, r: right, t: top, b: bottom } };
}

/** "x", "x2", "x3" ...: plotly's name of axis number `i`, counted from 0. */
export const axis = (letter: "x" | "y", i: number): string => (i === 0 ? letter : `${letter}${i + 1}`);

/** Both axes of panel `i`, invisible: cell (row r, column c) of the grid is centred on (c, r), row 0 on top. */
export function cellAxes(i: number, box: Box, [rows, columns]: Grid, more: object = {}): object {
  const plain = { showgrid: false, zeroline: false, showticklabels: false, ticks: "", fixedrange: false, ...more };
  const suffix = i === 0 ? "" : String(i + 1);
  return {
    [`xaxis${suffix}`]: { ...plain, domain: box.x, anchor: axis("y", i), range: [-0.5, columns - 0.5] },
    [`yaxis${suffix}`]: { ...plain, domain: box.y, anchor: axis("x", i), range: [rows - 0.5, -0.5] },
  };
}

/** A layout image that fills the cells of panel `i`, under the traces. */
export function underPanel(i: number, source: string, [rows, columns]: Grid): object {
  return {
    source,
    xref: axis("x", i),
    yref: axis("y", i),
    x: -0.5,
    y: -0.5,
    sizex: columns,
    sizey: rows,
    xanchor: "left",
    yanchor: "top",
    sizing: "stretch",
    layer: "below",
  };
}

/** A layout image in a panel that needs no axes: as large as its aspect ratio allows, centred. A hundred axes would take seconds to draw. */
export function inBox(box: Box, source: string): object {
  return {
    source,
    xref: "paper",
    yref: "paper",
    x: (box.x[0] + box.x[1]) / 2,
    y: (box.y[0] + box.y[1]) / 2,
    sizex: box.x[1] - box.x[0],
    sizey: box.y[1] - box.y[0],
    xanchor: "center",
    yanchor: "middle",
    sizing: "contain",
    layer: "below",
  };
}

/** A trace that draws nothing on axes that show nothing: plotly's way to a figure of pictures alone. */
export const NOTHING = { type: "scatter", mode: "markers", x: [0], y: [0], marker: { opacity: 0 }, hoverinfo: "skip" };
export const NO_AXES = { xaxis: { visible: false, fixedrange: true }, yaxis: { visible: false, fixedrange: true } };

/** A line of text above a panel; it must be safe already. */
export function panelTitle(box: Box, text: string, size = 12.5): object {
  return {
    text,
    x: (box.x[0] + box.x[1]) / 2,
    y: box.y[1],
    xref: "paper",
    yref: "paper",
    xanchor: "center",
    yanchor: "bottom",
    yshift: 3,
    showarrow: false,
    font: { size, color: INK },
  };
}

/** Text below a panel; it must be safe already. */
export const below = (box: Box, text: string): object => ({
  ...panelTitle({ x: box.x, y: [0, box.y[0]] }, text, 11.5),
  yanchor: "top",
  yshift: -3,
});
