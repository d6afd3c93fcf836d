import { attentionShare, type Span } from "../inside/looks";
import type { Figure, Rows } from "./figure";
import { round, shapeOf } from "./numbers";
import { baseLayout, CATEGORIES, escapeText, LABELS_APART, valueAxis } from "./style";

/** Bars that one figure can label. */
const MOST = 80;
const PICTURES = [CATEGORIES[1], CATEGORIES[5], CATEGORIES[3], CATEGORIES[7]];

/**
 * What each token of an answer looked at: shares of its attention on the picture(s), on sinks (the first token, which gathers attention whatever it says),
 * on the prompt's other text, and on the answer so far. rows: [tokens][keys], of `meanPattern(await answerAttention(model, asked))`; tokens: their texts;
 * prompt: `{ length: prompt.ids.length, images: prompt.images }`.
 */
export function attentionShares(
  rows: Rows,
  tokens: readonly string[],
  prompt: { length: number; images: readonly Span[] },
  { sinks, title = "What the answer looks at" }: { sinks?: readonly number[]; title?: string } = {},
): Figure {
  const [count, keys] = shapeOf("attentionShares", "rows", rows);
  if (tokens.length !== count || count > MOST || prompt.length > keys)
    throw new RangeError(
      `attentionShares: ${tokens.length} tokens, ${count} rows of ${keys} keys, a prompt of ${prompt.length}; expected a token for each of at most ${MOST} rows, and the prompt among the keys`,
    );
  const shares = attentionShare(rows, prompt, { sinks });
  const several = prompt.images.length > 1;
  const parts = [
    ...prompt.images.map((_, i) => ({ name: several ? `picture ${i + 1}` : "picture", values: shares.map((s) => s.pictures[i]) })),
    { name: "prompt's text", values: shares.map((s) => s.text) },
    { name: "answer so far", values: shares.map((s) => s.answer) },
    { name: "sink", values: shares.map((s) => s.sink) },
  ];
  const colors = [...parts.slice(3).map((_, i) => PICTURES[i % PICTURES.length]), CATEGORIES[0], CATEGORIES[2], "#C4C8CE"];
  return {
    data: parts.map(({ name, values }, i) => ({
      type: "bar",
      name,
      x: values.map((_, k) => k),
      y: values.map((x) => round(x, 4)),
      marker: { color: colors[i] },
      customdata: tokens.map((token) => escapeText(token, 24)),
      hovertemplate: `%{customdata}<br>${name}: %{y:.1%}<extra></extra>`,
    })),
    layout: baseLayout(
      escapeText(title),
      `mean on the picture${several ? "s" : ""}: ${percent(shares.map((s) => s.pictures.reduce((a, b) => a + b, 0)))}`,
      {
        barmode: "stack",
        bargap: 0.15,
        showlegend: true,
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
        xaxis: {
          range: [-0.6, count - 0.4],
          tickmode: "array",
          tickvals: tokens.map((_, k) => k),
          ticktext: tokens.map((token) => escapeText(token.replace(/ /g, "·").replace(/\n/g, "↵"), 14)),
          tickangle: count > 8 ? -60 : 0,
          ...LABELS_APART,
          showgrid: false,
          zeroline: false,
          automargin: false,
        },
        yaxis: valueAxis("share of the attention", { range: [0, 1], tickformat: ".0%" }),
        width: Math.max(420, Math.min(900, 150 + 34 * count)),
        height: 400,
        margin: { l: 72, r: 24, t: 108, b: count > 8 ? 104 : 44 },
      },
    ),
  };
}

const percent = (values: number[]): string => `${round((100 * values.reduce((a, b) => a + b, 0)) / values.length, 3)} %`;
