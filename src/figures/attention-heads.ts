import type { Figure, Heads, Rows } from "./figure";
import { blockMean, headsOf, largest, round } from "./numbers";
import { axis, panelTitle, placePanels } from "./panels";
import { AMOUNT, baseLayout, escapeText, LABELS_APART } from "./style";

/** Characters that the weights of all heads may take in one figure. */
const MOST_CHARACTERS = 850_000;

/**
 * Every head of one layer, side by side: row = the token that looks (query), column = the token looked at (key).
 * pattern: [heads][queries][keys], rows sum to 1. Each head has its own scale, from 0 to its largest weight, which its title gives.
 * tokens: the texts of the tokens; they label the axes of up to 16 tokens and always the hover. Where the pattern is too large to draw
 * (a notebook output holds 1 MB), it is averaged over blocks of tokens and the note says so.
 */
export function attentionHeads(
  pattern: Heads,
  { tokens, title = "Attention of every head", columns }: { tokens?: readonly string[]; title?: string; columns?: number } = {},
): Figure {
  const [heads, queries, keys] = headsOf("attentionHeads", pattern);
  if (tokens && (tokens.length !== keys || tokens.length !== queries))
    throw new RangeError(
      `attentionHeads: ${tokens.length} tokens for a pattern of ${queries}x${keys}, expected one for each row and column`,
    );
  const tops = Array.from(pattern, (head) => largest(head) || 1);
  const block = Math.max(1, Math.ceil(Math.sqrt((heads * queries * keys * (Math.max(...tops.map(decimals)) + 3)) / MOST_CHARACTERS)));
  const across = columns ?? Math.min(4, heads);
  const labelled = tokens !== undefined && block === 1 && keys <= 16 && across <= 3;
  const { boxes, ...size } = placePanels(heads, across, {
    aspect: queries / keys,
    left: labelled ? 100 : 18,
    bottom: labelled ? 104 : 18,
    gapX: labelled ? 100 : 14,
    gapY: labelled ? 128 : 32,
  });
  const names = Array.from({ length: Math.ceil(keys / block) }, (_, i) => nameOf(i, block, keys, tokens));
  const rowNames = queries === keys ? names : Array.from({ length: Math.ceil(queries / block) }, (_, i) => nameOf(i, block, queries));
  const layout: Record<string, unknown> = {};
  boxes.forEach((box, i) => Object.assign(layout, tokenAxes(i, box, labelled, rowNames.length, names)));
  const note =
    block > 1
      ? `${queries} × ${keys} tokens, averaged over blocks of ${block} × ${block} to fit`
      : `${queries} × ${keys} tokens; darkest = the head's largest weight`;
  return {
    data: Array.from(pattern, (head, i) => heatmap(i, blockMean(head, block), names, rowNames)),
    layout: baseLayout(escapeText(title), note, {
      ...layout,
      ...size,
      annotations: boxes.map((box, i) => panelTitle(box, `head ${i} · max ${round(tops[i], 2)}`, across > 4 ? 10.5 : 12.5)),
    }),
  };
}

function heatmap(i: number, z: Rows, x: string[], y: string[]): object {
  const most = largest(z) || 1;
  const scale = 10 ** decimals(most);
  return {
    type: "heatmap",
    z: Array.from(z, (row) => Array.from(row, (v) => (Number.isFinite(v) ? Math.round(v * scale) / scale : null))),
    x,
    y,
    zmin: 0,
    zmax: round(most, 3),
    colorscale: AMOUNT,
    showscale: false,
    xaxis: axis("x", i),
    yaxis: axis("y", i),
    hovertemplate: `head ${i}: %{y} → %{x}<br>%{z}<extra></extra>`,
  };
}

/** Decimals that show hundredths of the largest weight or finer, which is below what colours show. */
const decimals = (most: number): number => Math.max(0, Math.ceil(-Math.log10(most))) + 2;

/** Token i, or the range of tokens that block i averages. The number in front keeps equal tokens apart. */
function nameOf(i: number, block: number, count: number, tokens?: readonly string[]): string {
  if (block > 1) return `${i * block}-${Math.min(count, (i + 1) * block) - 1}`;
  return tokens ? `${i} ${escapeText(tokens[i], 12)}` : String(i);
}

function tokenAxes(i: number, { x, y }: { x: number[]; y: number[] }, labelled: boolean, rows: number, names: string[]): object {
  const suffix = i === 0 ? "" : String(i + 1);
  const plain = {
    type: "category",
    showgrid: false,
    showticklabels: labelled,
    ...LABELS_APART,
    tickfont: { size: 10 },
    automargin: false,
    linecolor: "#D1D5DB",
    mirror: true,
    showline: true,
  };
  return {
    [`xaxis${suffix}`]: { ...plain, domain: x, anchor: axis("y", i), tickangle: -60, range: [-0.5, names.length - 0.5] },
    [`yaxis${suffix}`]: { ...plain, domain: y, anchor: axis("x", i), range: [rows - 0.5, -0.5] },
  };
}
