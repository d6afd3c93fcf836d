import type { Figure, Heads } from "./figure";
import { expectIndex, headsOf, round } from "./numbers";
import { baseLayout, CATEGORIES, escapeText } from "./style";

/** Tokens on one side: more could not be told apart. */
const MOST_TOKENS = 64;
/** Characters that the lines of all layers may take in one figure. */
const MOST_CHARACTERS = 600_000;
const ROW = 22;
/** Lines from this weight on are drawn so strongly. */
const LEVELS = [
  { from: 0.5, opacity: 0.95 },
  { from: 0.25, opacity: 0.6 },
  { from: 0.1, opacity: 0.32 },
  { from: 0, opacity: 0.14 },
];

type Link = { head: number; query: number; key: number; weight: number };

/**
 * Who looks at whom: a line from each token (left) to each it looks at (right), a colour for each head, stronger with more weight; the slider chooses the
 * layer, a click in the legend a head. After BertViz's head view (Vig 2019). patterns: [layers][heads][queries][keys], rows sum to 1.
 * tokens: of the keys, and of the queries where `queries` does not say otherwise (cross-attention). least: the smallest weight that is drawn.
 * For long prompts fold the pictures first: `foldTokens`.
 */
export function headView(
  patterns: ArrayLike<Heads>,
  tokens: readonly string[],
  {
    layer,
    queries = tokens,
    least = 0.05,
    title = "Who looks at whom",
  }: { layer?: number; queries?: readonly string[]; least?: number; title?: string } = {},
): Figure {
  const heads = checkPatterns(patterns, queries.length, tokens.length);
  const shown = layer ?? patterns.length - 1;
  expectIndex("headView", "layer", shown, patterns.length);
  if (!(least > 0 && least < 1)) throw new RangeError(`headView: least is ${least}, expected a weight above 0 and below 1`);
  const most = Math.floor(MOST_CHARACTERS / patterns.length / 28);
  const layers = Array.from(patterns, (pattern) => linksOf(pattern, least, most));
  const cut = layers.some((links) => links.cut);
  const drawn = layers.map(({ links }) => traces(links, heads));
  const rows = Math.max(tokens.length, queries.length);
  const left = 24 + 7.2 * Math.min(18, Math.max(...queries.map((t) => Array.from(t).length)));
  const right = 120 + 7.2 * Math.min(18, Math.max(...tokens.map((t) => Array.from(t).length)));
  const note = `layer ${shown} of 0 to ${patterns.length - 1}; lines from ${round(least * 100, 2)} % of a token's attention on${cut ? ", the heaviest of them" : ""}`;
  const steps = drawn.map((one, i) => ({
    method: "update",
    label: String(i),
    args: [
      { x: one.map(({ x }) => x), y: one.map(({ y }) => y) },
      { "title.subtitle.text": note.replace(/^layer \d+/, `layer ${i}`) },
      one.map((_, k) => k),
    ],
  }));
  return {
    data: [...drawn[shown].map((one, k) => lineTrace(one, k)), side(queries, 0), side(tokens, 1)],
    layout: baseLayout(escapeText(title), note, {
      xaxis: { visible: false, range: [-0.01, 1.01], fixedrange: true },
      yaxis: { visible: false, range: [rows - 0.4, -0.6], fixedrange: true },
      showlegend: true,
      legend: { x: 1, xanchor: "right", y: 1, xref: "container", traceorder: "normal", font: { size: 11 } },
      sliders:
        patterns.length > 1
          ? [{ active: shown, steps, currentvalue: { prefix: "layer " }, pad: { t: 8 }, len: 1, x: 0, tickwidth: 0 }]
          : [],
      width: Math.round(Math.min(900, left + right + 420)),
      height: Math.round(96 + rows * ROW + (patterns.length > 1 ? 90 : 20)),
      margin: { l: Math.round(left), r: Math.round(right), t: 78, b: patterns.length > 1 ? 96 : 20 },
    }),
  };
}

function checkPatterns(patterns: ArrayLike<Heads>, queries: number, keys: number): number {
  if (!(patterns?.length > 0)) throw new RangeError("headView: no layers, expected one [heads][queries][keys] pattern for each layer");
  if (Math.max(queries, keys) > MOST_TOKENS)
    throw new RangeError(
      `headView: ${Math.max(queries, keys)} tokens, expected at most ${MOST_TOKENS}; fold pictures with foldTokens(), or choose a part`,
    );
  let most = 0;
  for (let layer = 0; layer < patterns.length; layer++) {
    const [heads, q, k] = headsOf("headView", patterns[layer]);
    if (q !== queries || k !== keys)
      throw new RangeError(`headView: layer ${layer} is ${q}x${k}, the tokens are ${queries} that look and ${keys} that are looked at`);
    most = Math.max(most, heads);
  }
  return most;
}

/** The lines of a layer; of too many the heaviest. */
function linksOf(pattern: Heads, least: number, most: number): { links: Link[]; cut: boolean } {
  const links: Link[] = [];
  for (let head = 0; head < pattern.length; head++)
    for (let query = 0; query < pattern[head].length; query++)
      for (let key = 0; key < pattern[head][query].length; key++) {
        const weight = pattern[head][query][key];
        if (weight >= least) links.push({ head, query, key, weight });
      }
  if (links.length <= most) return { links, cut: false };
  return { links: links.sort((a, b) => b.weight - a.weight).slice(0, most), cut: true };
}

type Lines = { head: number; opacity: number; x: (number | null)[]; y: (number | null)[] };

/** Lines of one head and one strength are one trace: [heads · levels]. The heads lie side by side within a token's row. */
function traces(links: Link[], heads: number): Lines[] {
  const out = Array.from({ length: heads * LEVELS.length }, (_, i): Lines => {
    return { head: Math.floor(i / LEVELS.length), opacity: LEVELS[i % LEVELS.length].opacity, x: [], y: [] };
  });
  for (const { head, query, key, weight } of links) {
    const { x, y } = out[head * LEVELS.length + LEVELS.findIndex(({ from }) => weight >= from)];
    const shift = heads > 1 ? (head / (heads - 1) - 0.5) * 0.5 : 0;
    x.push(0, 1, null);
    y.push(round(query + shift, 4), round(key + shift, 4), null);
  }
  for (const { x, y } of out)
    if (x.length === 0) {
      x.push(null);
      y.push(null);
    }
  return out;
}

const lineTrace = ({ head, opacity, x, y }: Lines, k: number): object => ({
  type: "scatter",
  mode: "lines",
  name: `head ${head}`,
  legendgroup: `head ${head}`,
  showlegend: k % LEVELS.length === 0,
  x,
  y,
  line: { color: CATEGORIES[head % CATEGORIES.length], width: 2 },
  opacity,
  hoverinfo: "skip",
});

/** The tokens of one side as texts. */
const side = (tokens: readonly string[], x: 0 | 1): object => ({
  type: "scatter",
  mode: "text",
  x: tokens.map(() => x),
  y: tokens.map((_, i) => i),
  text: tokens.map((token) => (x === 0 ? `${escapeText(token, 18)} ` : ` ${escapeText(token, 18)}`)),
  textposition: x === 0 ? "middle left" : "middle right",
  textfont: { size: 12 },
  cliponaxis: false,
  showlegend: false,
  customdata: tokens.map((token, i) => `${i} ${escapeText(token)}`),
  hovertemplate: "%{customdata}<extra></extra>",
});
