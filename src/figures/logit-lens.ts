import type { Figure } from "./figure";
import { round } from "./numbers";
import { AMOUNT, baseLayout, colorBar, escapeText, LABELS_APART } from "./style";

/** Cells of one figure. */
const MOST = 2400;

/** What `logitLens` gives, with texts in place of ids. */
export type LensTexts = {
  /** The likeliest tokens, [layers][positions][top]. */
  texts: readonly (readonly (readonly string[])[])[];
  /** Their probabilities, 0 to 1. */
  probabilities: readonly (readonly (readonly number[])[])[];
};

/**
 * The logit lens: the likeliest next token behind each layer, if the model stopped there; darker = more probable; hover lists more. Layers up, positions
 * across. tokens: what stands at each position; the answer to look for is what comes next. The caveat is part of the figure: only the last row is
 * something the model was trained to say, and for picture towers and image tokens there may be nothing to read at all.
 *
 * lens: `{ texts: lens.ids.map(...tokenizer.decode), probabilities: lens.probabilities }`
 */
export function logitLensGrid({ texts, probabilities }: LensTexts, tokens: readonly string[], { title = "Logit lens" } = {}): Figure {
  const [layers, positions] = [texts.length, texts[0]?.length ?? 0];
  const odd = [
    ...(layers > 0 && positions > 0 ? [] : ["no layers or no positions"]),
    ...(probabilities.length === layers && probabilities.every((row) => row.length === positions)
      ? []
      : ["texts and probabilities differ in shape"]),
    ...(tokens.length === positions ? [] : [`${tokens.length} tokens for ${positions} positions`]),
    ...(layers * positions <= MOST ? [] : [`${layers}x${positions} cells, at most ${MOST} fit: choose positions`]),
  ];
  if (odd.length) throw new RangeError(`logitLensGrid: ${odd.join("; ")}; expected [layers][positions][top]`);
  const cell = Math.max(44, Math.min(92, 760 / positions));
  const letters = Math.max(3, Math.floor((cell - 6) / 7.2));
  const visible = (text: string) => text.replace(/ /g, "·").replace(/\n/g, "↵");
  const [left, right, top, bottom] = [64, 84, 96, 96];
  return {
    data: [
      {
        type: "heatmap",
        z: probabilities.map((row) => row.map((p) => round(p[0], 3))),
        zmin: 0,
        zmax: 1,
        colorscale: AMOUNT,
        colorbar: colorBar("probability"),
        xgap: 1,
        ygap: 1,
        text: texts.map((row) => row.map((words) => escapeText(visible(words[0]), letters))),
        texttemplate: "%{text}",
        textfont: { size: 11 },
        customdata: texts.map((row, i) =>
          row.map((words, j) =>
            words.map((word, k) => `${escapeText(visible(word), 20)} ${round(100 * probabilities[i][j][k], 2)} %`).join("<br>"),
          ),
        ),
        hovertemplate: "layer %{y}, position %{x}<br>%{customdata}<extra></extra>",
      },
    ],
    layout: baseLayout(
      escapeText(title),
      "what the head would say behind each layer. Read with care: only the last layer is trained to be<br>read this way, an earlier one may hold its content in another basis",
      {
        xaxis: {
          title: { text: "token at the position", standoff: 6 },
          tickmode: "array",
          tickvals: tokens.map((_, i) => i),
          ticktext: tokens.map((token) => escapeText(visible(token), 12)),
          tickangle: positions > 6 ? -50 : 0,
          ...LABELS_APART,
          showgrid: false,
          zeroline: false,
          automargin: false,
        },
        yaxis: {
          title: { text: "layer", standoff: 6 },
          dtick: layers > 16 ? 4 : 1,
          ...LABELS_APART,
          showgrid: false,
          zeroline: false,
          automargin: false,
        },
        width: Math.round(Math.max(620, left + right + cell * positions)),
        height: Math.round(top + bottom + Math.max(20, Math.min(30, 520 / layers)) * layers),
        margin: { l: left, r: right, t: top, b: bottom },
      },
    ),
  };
}
