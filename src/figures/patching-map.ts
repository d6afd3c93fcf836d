import type { Patched } from "../inside/patching";
import type { Figure } from "./figure";
import { round } from "./numbers";
import { baseLayout, colorBar, escapeText, LABELS_APART, SIGNED } from "./style";

/**
 * Where the difference between two runs lies: each cell is one activation of the base run replaced by the source run's, coloured by how far the answer
 * moved: 0 = it stays the base run's, 1 = it becomes the source run's; below 0 it moves away. Where the two runs measure the same, the change itself.
 * positions: a text for each group of positions; names: a text for each activation, by default its layer.
 */
export function patchingMap(
  patched: Patched,
  positions: readonly string[],
  {
    names,
    measure = "logit difference",
    title = "What carries the answer",
  }: { names?: readonly string[]; measure?: string; title?: string } = {},
): Figure {
  const { base, source, values } = patched;
  const done = values.filter((row) => row.length === patched.positions.length);
  if (done.length === 0) throw new RangeError("patchingMap: no layer is complete; patchRuns was stopped before the first was done");
  if (positions.length !== patched.positions.length || (names && names.length !== patched.names.length))
    throw new RangeError(
      `patchingMap: ${positions.length} position texts and ${names?.length ?? patched.names.length} names for ${patched.names.length}x${patched.positions.length} values, expected one for each`,
    );
  const gap = source - base;
  const relative = Math.abs(gap) > 1e-9;
  const z = done.map((row) => row.map((x) => round(relative ? (x - base) / gap : x - base, 3)));
  const most = Math.max(relative ? 1 : 1e-9, ...z.flat().map((x) => Math.abs(x ?? 0)));
  const labels = (names ?? patched.names.map((name) => name.replace(/^.*?(?:blocks|layers)\.(\d+)\.(.*)$/, "$1 $2"))).slice(0, done.length);
  const visible = (text: string) => escapeText(text.replace(/ /g, "·").replace(/\n/g, "↵"), 14);
  const cell = Math.max(14, Math.min(56, 700 / positions.length));
  const axis = (texts: string[]) => ({
    tickmode: "array",
    tickvals: texts.map((_, i) => i),
    ticktext: texts,
    showgrid: false,
    zeroline: false,
    ...LABELS_APART,
    automargin: false,
  });
  const [left, right, top, bottom] = [128, 90, 84, 112];
  return {
    data: [
      {
        type: "heatmap",
        z,
        zmin: -most,
        zmax: most,
        colorscale: SIGNED,
        colorbar: colorBar(relative ? "moved" : "change"),
        xgap: 1,
        ygap: 1,
        customdata: done.map((row) => row.map((x) => round(x, 4))),
        hovertemplate: `%{y}, position %{x}<br>${relative ? "moved %{z} of the way" : "changed by %{z}"}<br>${escapeText(measure)} %{customdata}<extra></extra>`,
      },
    ],
    layout: baseLayout(
      escapeText(title),
      `${escapeText(measure)}: base ${round(base, 3)}, source ${round(source, 3)}; ${relative ? "1 = all the way from base to source" : "the runs measure the same: the change itself"}${done.length < patched.names.length ? "; stopped early" : ""}`,
      {
        xaxis: { ...axis(positions.map(visible)), tickangle: positions.length > 6 ? -60 : 0, range: [-0.5, positions.length - 0.5] },
        yaxis: { ...axis(labels.map((label) => escapeText(label, 20))), range: [-0.5, done.length - 0.5] },
        width: Math.round(Math.max(560, left + right + cell * positions.length)),
        height: Math.round(top + bottom + Math.max(15, Math.min(34, 620 / done.length)) * done.length),
        margin: { l: left, r: right, t: top, b: bottom },
      },
    ),
  };
}
