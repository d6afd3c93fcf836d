import type { Figure } from "./figure";
import { round } from "./numbers";
import { baseLayout, CATEGORIES, escapeText, GRIDLINE, QUIET, valueAxis } from "./style";

/** A row of the training loop; the figure reads these four and leaves the rest alone. */
export type LossRow = { step: number; loss: number; learningRate?: number; gradNorm?: number };

/** Points a curve keeps; longer runs are averaged over equal stretches of steps. */
const MOST_POINTS = 2000;

/**
 * Loss by step, with its moving average over `window` steps (default: a twentieth of the run), the learning rate on the right axis and,
 * where the rows have it, the norm of the gradient below. A loss that is NaN or infinite is a gap, and the note names its step.
 * Call it again with more rows for a live curve: zoom is kept (`uirevision`).
 */
export function lossCurve(rows: readonly LossRow[], { window, title = "Training loss" }: { window?: number; title?: string } = {}): Figure {
  if (window !== undefined && !(Number.isInteger(window) && window >= 1))
    throw new RangeError(`lossCurve: window is ${window}, expected a whole number of steps`);
  const across = window ?? Math.max(1, Math.round(rows.length / 20));
  const step = Math.ceil(rows.length / MOST_POINTS) || 1;
  const mean = movingAverage(
    rows.map((row) => row.loss),
    across,
  );
  const x = thin(
    rows.map((row) => row.step),
    step,
    true,
  );
  const line = (name: string, values: (number | undefined)[], more: object) => ({
    type: "scatter",
    mode: "lines",
    name,
    x,
    y: thin(values, step, false),
    hovertemplate: `step %{x}<br>${name} %{y}<extra></extra>`,
    ...more,
  });
  const has = (key: "learningRate" | "gradNorm") => rows.some((row) => row[key] !== undefined);
  const under = has("gradNorm");
  return {
    data: [
      line(
        "loss",
        rows.map((row) => row.loss),
        { line: { color: "#A9CCE3", width: 1.2 }, mode: rows.length === 1 ? "markers" : "lines" },
      ),
      ...(across > 1 ? [line(`mean of ${across}`, mean, { line: { color: CATEGORIES[0], width: 2.6 } })] : []),
      ...(has("learningRate")
        ? [
            line(
              "learning rate",
              rows.map((row) => row.learningRate),
              { yaxis: "y2", line: { color: CATEGORIES[1], width: 1.6, dash: "dot" } },
            ),
          ]
        : []),
      ...(under
        ? [
            line(
              "gradient norm",
              rows.map((row) => row.gradNorm),
              { xaxis: "x", yaxis: "y3", line: { color: CATEGORIES[2], width: 1.4 } },
            ),
          ]
        : []),
    ],
    layout: baseLayout(escapeText(title), note(rows, step), {
      xaxis: valueAxis("step", { anchor: under ? "y3" : "y" }),
      yaxis: valueAxis("loss", { domain: under ? [0.34, 1] : [0, 1] }),
      ...(has("learningRate")
        ? {
            yaxis2: valueAxis("learning rate", {
              overlaying: "y",
              side: "right",
              showgrid: false,
              rangemode: "tozero",
              tickmode: "auto",
              nticks: 5,
              exponentformat: "e",
              color: QUIET,
            }),
          }
        : {}),
      ...(under ? { yaxis3: valueAxis("gradient norm", { domain: [0, 0.24], rangemode: "tozero", linecolor: GRIDLINE }) } : {}),
      showlegend: true,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1.01, yanchor: "bottom" },
      hovermode: "x",
      uirevision: "loss",
      margin: { l: 72, r: 104, t: 92, b: 52 },
      height: under ? 520 : 420,
    }),
  };
}

function note(rows: readonly LossRow[], step: number): string {
  if (rows.length === 0) return "no steps yet";
  const bad = rows.filter((row) => !Number.isFinite(row.loss));
  const last = rows[rows.length - 1];
  return [
    `step ${last.step}: ${round(last.loss) ?? String(last.loss)}`,
    ...(bad.length > 0 ? [`<b>not finite at step ${bad[0].step}</b>${bad.length > 1 ? ` and ${bad.length - 1} more` : ""}`] : []),
    ...(step > 1 ? [`each point is the mean of ${step} steps`] : []),
  ].join(" · ");
}

/** The mean of each value and those up to `across - 1` before it; values that are not finite are left out. */
function movingAverage(values: number[], across: number): number[] {
  let [sum, count] = [0, 0];
  return values.map((value, i) => {
    if (Number.isFinite(value)) [sum, count] = [sum + value, count + 1];
    const old = values[i - across];
    if (i >= across && Number.isFinite(old)) [sum, count] = [sum - old, count - 1];
    return count > 0 ? sum / count : NaN;
  });
}

/** One number for each `step` values: their mean, or the last of them. Gaps are null. */
function thin(values: (number | undefined)[], step: number, last: boolean): (number | null)[] {
  return Array.from({ length: Math.ceil(values.length / step) }, (_, i) => {
    const part = values.slice(i * step, (i + 1) * step);
    if (last) return round(part[part.length - 1] ?? NaN, 12);
    return round(part.reduce<number>((sum, x) => sum + (x ?? NaN), 0) / part.length);
  });
}
