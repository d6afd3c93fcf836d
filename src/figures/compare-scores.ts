import type { Figure } from "./figure";
import { round } from "./numbers";
import { baseLayout, CATEGORIES, escapeText, INK, QUIET, valueAxis } from "./style";

/** One run: what it is a run of, and its share of right answers by topic. */
export type Scores = { name: string; shares: { [topic: string]: number } };

/**
 * Shares of right answers by topic, a bar for each kind of run with the mean of its runs, and every run as a dot. floor: for a topic, what is reached without
 * looking (the most frequent answer), drawn as a black line across its bars.
 */
export function compareScores(
  scores: readonly Scores[],
  { title = "Right answers", floor = {} }: { title?: string; floor?: { [topic: string]: number } } = {},
): Figure {
  if (scores.length === 0) throw new RangeError("compareScores: no runs, expected at least one with its name");
  const names = [...new Set(scores.map(({ name }) => name))];
  const topics = Object.keys(scores[0].shares);
  const odd = scores.find(({ shares }) => Object.keys(shares).join() !== topics.join());
  if (odd)
    throw new RangeError(
      `compareScores: a run of ${odd.name} has the topics ${Object.keys(odd.shares).join(", ")}; expected ${topics.join(", ")}`,
    );
  const width = 0.8 / names.length;
  const place = (topic: number, name: number) => topic + (name - (names.length - 1) / 2) * width;
  const runs = names.map((name) => scores.filter((one) => one.name === name));
  const most = Math.max(...runs.map(({ length }) => length));
  return {
    data: [
      ...names.map((name, n) => ({
        type: "bar",
        name: escapeText(name, 30),
        x: topics.map((_, t) => round(place(t, n), 4)),
        y: topics.map((topic) => round(runs[n].reduce((sum, { shares }) => sum + shares[topic], 0) / runs[n].length, 4)),
        width: width * 0.9,
        marker: { color: CATEGORIES[n % CATEGORIES.length], opacity: most > 1 ? 0.75 : 1 },
        hovertemplate: `${escapeText(name, 30)}: %{y:.1%}<extra></extra>`,
      })),
      {
        type: "scatter",
        mode: "markers",
        showlegend: false,
        x: runs.flatMap((some, n) => some.flatMap((_, i) => topics.map((_, t) => round(place(t, n) + spread(i, some.length) * width, 4)))),
        y: runs.flatMap((some) => some.flatMap(({ shares }) => topics.map((topic) => round(shares[topic], 4)))),
        marker: { color: INK, size: most > 1 ? 5 : 0.1 },
        hovertemplate: "one run: %{y:.1%}<extra></extra>",
      },
    ],
    layout: baseLayout(
      escapeText(title),
      `${most > 1 ? `bars: the mean of ${most} runs; dots: each of them` : "one run each"}${Object.keys(floor).length ? "; lines: the most frequent answer" : ""}`,
      {
        xaxis: {
          tickmode: "array",
          tickvals: topics.map((_, t) => t),
          ticktext: topics.map((topic) => escapeText(topic, 24)),
          range: [-0.5, topics.length - 0.5],
          showgrid: false,
          zeroline: false,
          color: QUIET,
        },
        yaxis: valueAxis("share of right answers", { range: [0, 1.02], tickformat: ".0%" }),
        shapes: topics.flatMap((topic, t) =>
          floor[topic] === undefined
            ? []
            : [
                {
                  type: "line",
                  x0: t - 0.45,
                  x1: t + 0.45,
                  y0: round(floor[topic], 4),
                  y1: round(floor[topic], 4),
                  line: { color: INK, width: 2 },
                },
              ],
        ),
        showlegend: true,
        legend: { orientation: "h", x: 1, xanchor: "right", y: 1.01, yanchor: "bottom" },
        margin: { l: 72, r: 24, t: 92, b: 40 },
        height: 420,
      },
    ),
  };
}

/** Run i of n a little beside its neighbours, within a bar. */
const spread = (i: number, n: number): number => (n > 1 ? (i / (n - 1) - 0.5) * 0.5 : 0);
