import type { Figure, Rows } from "./figure";
import { shapeOf } from "./numbers";
import { axis, panelTitle, placePanels, type Box } from "./panels";
import { baseLayout, escapeText, INK, LABELS_APART, QUIET } from "./style";

/** A mask that a forward pass used: 1 where the row's token sees the column's, 0 where not. */
export type MaskGrid = { name: string; places: Rows; note?: string };

export type MaskGridOptions = {
  /** How many of the tokens are queries; they come first. */
  queries: number;
  /** The texts of the others. */
  tokens: readonly string[];
  title?: string;
  /** Another mask of the same size: cells that differ from it are outlined. */
  before?: Rows;
};

/** Hidden, and seen by a query or a text token of queries or text. */
const COLOURS: [number, string][] = [
  [0, "#F3F4F6"],
  [0.2, "#F3F4F6"],
  [0.2, "#0072B2"],
  [0.6, "#0072B2"],
  [0.6, "#E69F00"],
  [1, "#E69F00"],
];

/**
 * Masks of a Q-Former's self-attention side by side: row = the token that looks, column = the token looked at, filled where it may. Queries stand first,
 * blue columns; text behind the line, orange columns. The masks are those that the forward pass used (tap `qformer.mask`).
 */
export function maskGrids(masks: readonly MaskGrid[], { queries, tokens, title = "Who sees whom", before }: MaskGridOptions): Figure {
  if (masks.length === 0) throw new RangeError("maskGrids: no masks, expected at least one");
  const count = queries + tokens.length;
  for (const { name, places } of masks) {
    const [rows, columns] = shapeOf("maskGrids", name, places);
    if (rows !== count || columns !== count)
      throw new RangeError(
        `maskGrids: ${name} is ${rows}x${columns}, expected ${count}x${count} (${queries} queries and ${tokens.length} text tokens)`,
      );
  }
  const names = tokenNames(queries, tokens);
  const longest = Math.min(12, Math.max(2, ...tokens.map((token) => token.length)));
  const side = 30 + 6 * longest;
  const { boxes, ...size } = placePanels(masks.length, Math.min(3, masks.length), {
    top: 118,
    left: side,
    bottom: side + 14,
    gapX: 24,
    gapY: 60,
    most: 420,
  });
  const layout: Record<string, unknown> = {};
  boxes.forEach((box, i) => Object.assign(layout, axesOf(i, box, names, i % Math.min(3, masks.length) === 0)));
  return {
    data: masks.map(({ places }, i) => gridTrace(i, places, queries, names)),
    layout: baseLayout(escapeText(title), "row looks at column where it is filled; blue: at queries, orange: at text", {
      ...layout,
      ...size,
      shapes: boxes.flatMap((_, i) => [...border(i, queries, count), ...(before ? changes(i, masks[i].places, before) : [])]),
      annotations: masks.flatMap(({ name, note }, i) => [
        { ...panelTitle(boxes[i], escapeText(name, 48), 13), yshift: note ? 18 : 3 },
        ...(note ? [{ ...panelTitle(boxes[i], escapeText(note, 60), 11), font: { size: 11, color: QUIET } }] : []),
      ]),
    }),
  };
}

/** "q0" ... and the texts, made different by their places. */
export const tokenNames = (queries: number, tokens: readonly string[]): string[] => [
  ...Array.from({ length: queries }, (_, i) => `q${i}`),
  ...tokens.map((token, i) => `${i} ${escapeText(token, 12)}`),
];

function gridTrace(i: number, places: Rows, queries: number, names: string[]): object {
  return {
    type: "heatmap",
    z: Array.from(places, (row) => Array.from(row, (cell, j) => (cell ? (j < queries ? 0.4 : 0.8) : 0))),
    x: names,
    y: names,
    zmin: 0,
    zmax: 1,
    xgap: 1,
    ygap: 1,
    colorscale: COLOURS,
    showscale: false,
    xaxis: axis("x", i),
    yaxis: axis("y", i),
    customdata: Array.from(places, (row) => Array.from(row, (cell) => (cell ? "sees" : "does not see"))),
    hovertemplate: "%{y} %{customdata} %{x}<extra></extra>",
  };
}

function axesOf(i: number, { x, y }: Box, names: string[], labelled: boolean): object {
  const suffix = i === 0 ? "" : String(i + 1);
  const plain = {
    type: "category",
    showgrid: false,
    zeroline: false,
    ...LABELS_APART,
    tickfont: { size: names.length > 24 ? 8 : 9.5 },
    automargin: false,
  };
  const every = Math.ceil(names.length / 30);
  const shown = names.filter((_, j) => j % every === 0);
  const ticks = { tickmode: "array", tickvals: shown, ticktext: shown.map((name) => name.replace(/^\d+ /, "")) };
  return {
    [`xaxis${suffix}`]: { ...plain, ...ticks, domain: x, anchor: axis("y", i), tickangle: -90, range: [-0.5, names.length - 0.5] },
    [`yaxis${suffix}`]: {
      ...plain,
      ...ticks,
      domain: y,
      anchor: axis("x", i),
      showticklabels: labelled,
      range: [names.length - 0.5, -0.5],
    },
  };
}

/** Lines between queries and text. */
function border(i: number, queries: number, count: number): object[] {
  if (queries === 0 || queries === count) return [];
  const line = { type: "line", xref: axis("x", i), yref: axis("y", i), line: { color: INK, width: 1.2 } };
  const at = queries - 0.5;
  return [
    { ...line, x0: at, x1: at, y0: -0.5, y1: count - 0.5 },
    { ...line, x0: -0.5, x1: count - 0.5, y0: at, y1: at },
  ];
}

/** Frames around cells that differ. */
function changes(i: number, places: Rows, before: Rows): object[] {
  return Array.from(places).flatMap((row, r) =>
    Array.from(row).flatMap((cell, c) =>
      cell === before[r]?.[c]
        ? []
        : [
            {
              type: "rect",
              xref: axis("x", i),
              yref: axis("y", i),
              x0: c - 0.5,
              x1: c + 0.5,
              y0: r - 0.5,
              y1: r + 0.5,
              line: { color: INK, width: 2 },
            },
          ],
    ),
  );
}
