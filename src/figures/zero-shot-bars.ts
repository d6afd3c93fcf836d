import type { Picture } from "../image/picture";
import type { Figure } from "./figure";
import { inBox } from "./panels";
import { pictureUri } from "./picture";
import { baseLayout, CATEGORIES, escapeText, GRIDLINE, LABELS_APART, QUIET, RIGHT, WIDTH } from "./style";

/**
 * Zero-shot classification of one picture: the most likely labels with their probabilities (0-1), largest on top; `correct` is drawn in
 * green and marked. top: how many labels are shown; the note gives the number of all.
 */
export function zeroShotBars(
  picture: Picture,
  predictions: readonly { label: string; score: number }[],
  { top = 8, correct, title = "Zero-shot classification" }: { top?: number; correct?: string; title?: string } = {},
): Figure {
  const bad = predictions.filter(({ score: p }) => !(p >= 0 && p <= 1.0001));
  if (predictions.length === 0 || bad.length > 0)
    throw new RangeError(
      `zeroShotBars: ${predictions.length === 0 ? "no predictions" : `the score of "${bad[0].label}" is ${bad[0].score}`}, expected 0 to 1 for each label`,
    );
  const best = [...predictions].sort((a, b) => b.score - a.score).slice(0, top);
  const height = Math.max(240, best.length * 34 + 110);
  const shown = (label: string) => (label === correct ? `<b>${escapeText(label, 34)} ✓</b>` : escapeText(label, 34));
  return {
    data: [
      {
        type: "bar",
        orientation: "h",
        x: best.map((b) => Number(b.score.toFixed(4))),
        y: best.map((_, i) => i),
        marker: { color: best.map((b) => (b.label === correct ? RIGHT : CATEGORIES[0])) },
        width: 0.66,
        cliponaxis: false,
        text: best.map((b) => `${(b.score * 100).toFixed(1)} %`),
        textposition: "outside",
        customdata: best.map((b) => escapeText(b.label)),
        hovertemplate: "%{customdata}: %{x}<extra></extra>",
      },
    ],
    layout: baseLayout(escapeText(title), `${best.length === predictions.length ? "" : `${best.length} of `}${predictions.length} labels`, {
      images: [inBox({ x: [0, 0.26], y: [0, 1] }, pictureUri("zeroShotBars", picture, 320))],
      xaxis: { domain: [0.56, 0.93], range: [0, 1], tickformat: ".0%", gridcolor: GRIDLINE, zeroline: false, color: QUIET },
      yaxis: {
        range: [best.length - 0.5, -0.5],
        tickmode: "array",
        tickvals: best.map((_, i) => i),
        ticktext: best.map((b) => shown(b.label)),
        ...LABELS_APART,
        showgrid: false,
        zeroline: false,
        automargin: false,
      },
      width: WIDTH,
      height,
      margin: { l: 24, r: 24, t: 78, b: 36 },
    }),
  };
}
