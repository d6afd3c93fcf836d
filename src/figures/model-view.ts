import type { Figure, Heads } from "./figure";
import { blockMean, headsOf, largest } from "./numbers";
import { AMOUNT, baseLayout, escapeText, LABELS_APART, WIDTH } from "./style";

/** Cells that all patterns of one figure show together: 0.6 MB of JSON. */
const MOST_CELLS = 180_000;

/**
 * Every head of every layer at a glance: a small pattern each, layers down, heads across; row = the token that looks, column = the token looked at. After
 * BertViz's model view (Vig 2019). patterns: [layers][heads][queries][keys], rows sum to 1. Each pattern has its own scale, from 0 to its largest weight,
 * and is averaged over blocks of tokens where all of them would not fit.
 */
export function modelView(patterns: ArrayLike<Heads>, { title = "Every head of every layer" }: { title?: string } = {}): Figure {
  if (!(patterns?.length > 0)) throw new RangeError("modelView: no layers, expected one [heads][queries][keys] pattern for each layer");
  const shapes = Array.from(patterns, (pattern) => headsOf("modelView", pattern));
  const heads = Math.max(...shapes.map(([count]) => count));
  const longest = Math.max(...shapes.flatMap(([, queries, keys]) => [queries, keys]));
  const side = Math.min(longest, 32, Math.floor(Math.sqrt(MOST_CELLS / (heads * patterns.length))) - 1); // cells of a pattern, without the gap
  if (side < 2)
    throw new RangeError(
      `modelView: ${patterns.length} layers of ${heads} heads do not fit one figure; choose some layers: patterns.slice(0, 12)`,
    );
  const block = Math.ceil(longest / side);
  const cell = Math.ceil(longest / block) + 1; // and a gap behind
  const z = Array.from({ length: patterns.length * cell - 1 }, () => Array<number | null>(heads * cell - 1).fill(null));
  for (let layer = 0; layer < patterns.length; layer++)
    for (let head = 0; head < patterns[layer].length; head++) {
      const small = blockMean(patterns[layer][head], block);
      const most = largest(small) || 1;
      small.forEach((row, i) => {
        row.forEach((x, j) => {
          if (Number.isFinite(x)) z[layer * cell + i][head * cell + j] = Math.round((100 * x) / most);
        });
      });
    }
  const range = (i: number, count: number) => (block === 1 ? `${i}` : `${i * block}–${Math.min(count, (i + 1) * block) - 1}`);
  const names = (what: string, count: number) =>
    Array.from({ length: count * cell - 1 }, (_, i) => `${what} ${Math.floor(i / cell)}, token ${range(i % cell, longest)}`);
  const [left, right, top, bottom] = [58, 18, 96, 18];
  const pixels = Math.min(150, (WIDTH - left - right) / heads);
  const ticks = (count: number) => ({
    type: "category",
    tickmode: "array",
    tickvals: Array.from({ length: count }, (_, i) => i * cell + (cell - 2) / 2),
    ticktext: Array.from({ length: count }, (_, i) => String(i)),
    showgrid: false,
    zeroline: false,
    ...LABELS_APART,
    automargin: false,
  });
  const note = `${longest} tokens${block > 1 ? `, averaged over blocks of ${block} × ${block}` : ""}; darkest = the largest weight of each pattern`;
  return {
    data: [
      {
        type: "heatmap",
        z,
        x: names("head", heads),
        y: names("layer", patterns.length),
        zmin: 0,
        zmax: 100,
        colorscale: AMOUNT,
        showscale: false,
        hoverongaps: false,
        hovertemplate: "%{y} →<br>%{x}<br>%{z} % of its largest<extra></extra>",
      },
    ],
    layout: baseLayout(escapeText(title), note, {
      plot_bgcolor: "#9CA3AF",
      xaxis: { ...ticks(heads), title: { text: "head", standoff: 4 }, side: "top", range: [-0.5, heads * cell - 1.5] },
      yaxis: { ...ticks(patterns.length), title: { text: "layer", standoff: 4 }, range: [patterns.length * cell - 1.5, -0.5] },
      width: Math.round(Math.max(320, left + right + pixels * heads)),
      height: Math.round(top + bottom + 28 + pixels * patterns.length),
      margin: { l: left, r: Math.round(Math.max(right, 320 - left - pixels * heads)), t: top + 28, b: bottom },
    }),
  };
}
