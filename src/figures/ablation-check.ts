import type { Ablation } from "../inside/ablation";
import type { Figure } from "./figure";
import { round } from "./numbers";
import { baseLayout, CATEGORIES, CHOSEN, escapeText, GRIDLINE, LABELS_APART, QUIET } from "./style";

/**
 * The causal check of an attention figure: how much the score falls without what the figure points to (vermilion), beside as many places drawn at random
 * (blue: each draw, and their mean). Where the two lie together, the attention was no explanation of the answer. ablations: of `ablate`, one for each
 * question, with its text; unit: of the score.
 */
export function ablationCheck(
  ablations: readonly (Ablation & { label: string })[],
  { unit = "log p of the answer, nats", title = "Does the answer need what it looks at?" } = {},
): Figure {
  if (ablations.length === 0) throw new RangeError("ablationCheck: no ablations, expected at least one with its label");
  const change = ablations.map(({ intact, chosen }) => round(chosen - intact, 4));
  const draws = ablations.flatMap(({ intact, random }, i) => random.map((x, k) => ({ x: x - intact, y: i + spread(k, random.length) })));
  const means = ablations.map(({ intact, random }) =>
    random.length ? random.reduce((a, b) => a + b, 0) / random.length - intact : Number.NaN,
  );
  const texts = ablations.map(({ intact, chosen, random }) => {
    if (random.length === 0) return "";
    const asMuch = random.filter((x) => x - intact <= chosen - intact).length;
    return `${asMuch} of ${random.length} random draws lower it as much`;
  });
  const same = new Set(ablations.map(({ size, of }) => `${size} of ${of}`));
  return {
    data: [
      {
        type: "bar",
        orientation: "h",
        name: "what is pointed to",
        x: change,
        y: ablations.map((_, i) => i - 0.2),
        width: 0.34,
        marker: { color: CHOSEN },
        customdata: texts,
        hovertemplate: "without what is pointed to: %{x}<br>%{customdata}<extra></extra>",
      },
      {
        type: "bar",
        orientation: "h",
        name: "as many at random (mean)",
        x: means.map((x) => round(x, 4)),
        y: ablations.map((_, i) => i + 0.2),
        width: 0.34,
        marker: { color: "#B5D4E9" },
        hovertemplate: "random, mean: %{x}<extra></extra>",
      },
      {
        type: "scatter",
        mode: "markers",
        name: "each draw",
        x: draws.map(({ x }) => round(x, 4)),
        y: draws.map(({ y }) => round(y, 4)),
        marker: { color: CATEGORIES[0], size: 6, opacity: 0.65 },
        hovertemplate: "random: %{x}<extra></extra>",
      },
    ],
    layout: baseLayout(
      escapeText(title),
      `taken away: ${[...same].slice(0, 3).join(", ")}${same.size > 3 ? " …" : ""} places${texts.length === 1 && texts[0] ? `; ${texts[0]}` : ""}`,
      {
        showlegend: true,
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
        bargap: 0.3,
        xaxis: {
          title: { text: `change of the ${escapeText(unit, 40)}`, standoff: 8 },
          gridcolor: GRIDLINE,
          zeroline: true,
          zerolinecolor: QUIET,
          zerolinewidth: 1.5,
        },
        yaxis: {
          range: [ablations.length - 0.5, -0.5],
          tickmode: "array",
          tickvals: ablations.map((_, i) => i),
          ticktext: ablations.map(({ label }) => escapeText(label, 22)),
          ...LABELS_APART,
          showgrid: false,
          zeroline: false,
          automargin: false,
        },
        width: 760,
        height: Math.round(190 + 76 * ablations.length),
        margin: { l: 176, r: 28, t: 116, b: 60 },
      },
    ),
  };
}

/** Draw k of n a little apart from its neighbours, within the bar's width. */
const spread = (k: number, n: number): number => 0.2 + (n > 1 ? (((k * 7) % n) / (n - 1) - 0.5) * 0.26 : 0);
