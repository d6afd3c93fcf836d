import type { Figure, Heads } from "./figure";
import { headsOf, largest, round } from "./numbers";
import { axis, panelTitle, placePanels } from "./panels";
import { tokenNames } from "./qformer-masks";
import { meanOverHeads } from "./query-maps";
import { AMOUNT, baseLayout, CHOSEN, escapeText, LABELS_APART } from "./style";

/**
 * The self-attention that queries and text share, a panel a layer: row = the token that looks, column = the token looked at, the mean over the heads or one
 * head. Above each: how much of the queries' looks falls on text, and of the text's on queries. patterns: for each layer [heads][Q + T][Q + T]
 */
export function qFormerAttention(
  patterns: readonly Heads[],
  {
    queries,
    tokens,
    head,
    title = "Self-attention of queries and text",
  }: { queries: number; tokens: readonly string[]; head?: number; title?: string },
): Figure {
  const count = queries + tokens.length;
  if (patterns.length === 0) throw new RangeError("qFormerAttention: no layers, expected at least one");
  for (const [layer, pattern] of patterns.entries()) {
    const [heads, rows, columns] = headsOf("qFormerAttention", pattern);
    if (rows !== count || columns !== count)
      throw new RangeError(
        `qFormerAttention: layer ${layer} is ${rows}x${columns}, expected ${count}x${count} (${queries} queries, ${tokens.length} text tokens)`,
      );
    if (head !== undefined && !(Number.isInteger(head) && head >= 0 && head < heads))
      throw new RangeError(`qFormerAttention: head is ${head}, expected a whole number from 0 to ${heads - 1}`);
  }
  const names = tokenNames(queries, tokens);
  const across = Math.min(2, patterns.length);
  const { boxes, ...size } = placePanels(patterns.length, across, { top: 110, left: 96, bottom: 100, gapX: 30, gapY: 54 });
  const grids = patterns.map((pattern) =>
    head === undefined ? meanOverHeads(pattern) : Array.from(pattern[head], (row) => Float64Array.from(row)),
  );
  const layout: Record<string, unknown> = {};
  boxes.forEach(({ x, y }, i) => {
    const plain = { type: "category", showgrid: false, ...LABELS_APART, tickfont: { size: count > 24 ? 8 : 9.5 }, automargin: false };
    const ticks = { tickmode: "array", tickvals: names, ticktext: names.map((name) => name.replace(/^\d+ /, "")) };
    const suffix = i === 0 ? "" : String(i + 1);
    const last = i >= patterns.length - across;
    layout[`xaxis${suffix}`] = {
      ...plain,
      ...ticks,
      domain: x,
      anchor: axis("y", i),
      tickangle: -90,
      showticklabels: last,
      range: [-0.5, count - 0.5],
    };
    layout[`yaxis${suffix}`] = {
      ...plain,
      ...ticks,
      domain: y,
      anchor: axis("x", i),
      showticklabels: i % across === 0,
      range: [count - 0.5, -0.5],
    };
  });
  return {
    data: grids.map((grid, i) => ({
      type: "heatmap",
      z: grid.map((row) => Array.from(row, (x) => round(x, 3))),
      x: names,
      y: names,
      zmin: 0,
      zmax: round(largest(grid) || 1, 3),
      colorscale: AMOUNT,
      showscale: false,
      xaxis: axis("x", i),
      yaxis: axis("y", i),
      hovertemplate: `layer ${i}: %{y} → %{x}<br>%{z}<extra></extra>`,
    })),
    layout: baseLayout(
      escapeText(title),
      `${head === undefined ? "mean of the heads" : `head ${head}`}; darkest = the panel's largest weight`,
      {
        ...layout,
        ...size,
        shapes: queries > 0 && tokens.length > 0 ? boxes.flatMap((_, i) => cross(i, queries, count)) : [],
        annotations: boxes.map((box, i) => panelTitle(box, `layer ${i}${sharesOf(grids[i], queries)}`)),
      },
    ),
  };
}

function sharesOf(grid: Float64Array[], queries: number): string {
  if (queries === 0 || queries === grid.length) return "";
  const mean = (rows: Float64Array[], from: number, to: number) =>
    rows.reduce((sum, row) => sum + row.subarray(from, to).reduce((a, b) => a + b, 0), 0) / rows.length;
  const percent = (x: number) => `${Math.round(100 * x)} %`;
  return ` · queries → text ${percent(mean(grid.slice(0, queries), queries, grid.length))} · text → queries ${percent(mean(grid.slice(queries), 0, queries))}`;
}

function cross(i: number, queries: number, count: number): object[] {
  const line = { type: "line", xref: axis("x", i), yref: axis("y", i), line: { color: CHOSEN, width: 1.2 } };
  const at = queries - 0.5;
  return [
    { ...line, x0: at, x1: at, y0: -0.5, y1: count - 0.5 },
    { ...line, x0: -0.5, x1: count - 0.5, y0: at, y1: at },
  ];
}
