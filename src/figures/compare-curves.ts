import type { Figure } from "./figure";
import { round } from "./numbers";
import { baseLayout, CATEGORIES, escapeText, QUIET, valueAxis } from "./style";

/** One run: what it is a run of, and what was measured at some steps. */
export type Curve = { name: string; points: readonly { step: number; value: number }[] };

/**
 * Runs of several kinds over their steps, a colour for each kind: every run thin, and the mean of a kind's runs thick where they were measured at the same
 * steps. goal: a value drawn as a dashed line; the note then says when each kind's mean reaches it. log: a logarithmic axis of values.
 */
export function compareCurves(
  curves: readonly Curve[],
  {
    title = "Runs beside each other",
    unit = "loss",
    goal,
    log = false,
  }: { title?: string; unit?: string; goal?: number; log?: boolean } = {},
): Figure {
  if (curves.length === 0) throw new RangeError("compareCurves: no runs, expected at least one with its name");
  const names = [...new Set(curves.map(({ name }) => name))];
  const colour = (name: string) => CATEGORIES[names.indexOf(name) % CATEGORIES.length];
  const runsOf = (name: string) => curves.filter((curve) => curve.name === name);
  const means = names.map((name) => ({ name, points: meanOf(runsOf(name)), runs: runsOf(name).length }));
  const line = ({ name, points }: Curve, more: object) => ({
    type: "scatter",
    mode: points.length === 1 ? "markers" : "lines",
    x: points.map(({ step }) => step),
    y: points.map(({ value }) => (Number.isFinite(value) ? round(value) : null)),
    name: escapeText(name, 30),
    ...more,
  });
  const reached = means.map(
    ({ name, points }) => `${escapeText(name, 30)}: ${goal === undefined ? "" : (stepsTo(points, goal) ?? "not reached")}`,
  );
  return {
    data: [
      ...names.flatMap((name) =>
        runsOf(name).length < 2
          ? []
          : runsOf(name).map((run) =>
              line(run, { line: { color: colour(name), width: 1 }, opacity: 0.4, hoverinfo: "skip", showlegend: false }),
            ),
      ),
      ...means.map((mean) =>
        line(mean, {
          line: { color: colour(mean.name), width: 2.6 },
          marker: { color: colour(mean.name), size: 8 },
          hovertemplate: `step %{x}<br>${escapeText(mean.name, 30)} %{y}${mean.runs > 1 ? ` (mean of ${mean.runs})` : ""}<extra></extra>`,
        }),
      ),
    ],
    layout: baseLayout(escapeText(title), goal === undefined ? noteOf(means) : `steps to ${goal}: ${reached.join(" · ")}`, {
      xaxis: valueAxis("step", { rangemode: "tozero" }),
      yaxis: valueAxis(escapeText(unit, 40), log ? { type: "log" } : {}),
      ...(goal === undefined
        ? {}
        : {
            shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: goal, y1: goal, line: { color: QUIET, width: 1.2, dash: "dash" } }],
          }),
      showlegend: true,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1.01, yanchor: "bottom" },
      hovermode: "closest",
      uirevision: "curves",
      margin: { l: 72, r: 24, t: 92, b: 52 },
      height: 420,
    }),
  };
}

const noteOf = (means: { runs: number }[]): string => {
  const most = Math.max(...means.map(({ runs }) => runs));
  return most > 1 ? `thin: each of ${most} runs; thick: their mean` : "one run each";
};

/** The mean of runs at the steps that all of them have. */
function meanOf(runs: readonly Curve[]): { step: number; value: number }[] {
  const [first, ...rest] = runs.map(({ points }) => new Map(points.map(({ step, value }) => [step, value])));
  const shared = [...first.keys()].filter((step) => rest.every((one) => one.has(step)));
  return shared.map((step) => ({ step, value: [first, ...rest].reduce((sum, one) => sum + one.get(step)!, 0) / runs.length }));
}

/** The first measured step at which a curve is at or below a value; undefined where it never is. */
export const stepsTo = (points: Curve["points"], goal: number): number | undefined => points.find(({ value }) => value <= goal)?.step;
