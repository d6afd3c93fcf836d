import type { Statistics } from "../inside/statistics";
import type { Figure } from "./figure";
import { round } from "./numbers";
import { axis, panelTitle, placePanels } from "./panels";
import { baseLayout, CATEGORIES, escapeText, valueAxis } from "./style";

const PANELS = [
  { key: "norm", title: "mean length of a token's vector" },
  { key: "std", title: "standard deviation" },
  { key: "max", title: "largest absolute value" },
  { key: "dead", title: "share of silent channels" },
] as const;

/**
 * How activations lie, layer by layer: a line for each kind of activation (`resid_post`, `mlp.post` ...) in each tower, the layer's number across.
 * Names without `blocks.N` or `layers.N` are left out. rows: of `activationStatistics`.
 */
export function activationLayers(rows: readonly Statistics[], { title = "Activations by layer" } = {}): Figure {
  const lines = new Map<string, { layer: number; row: Statistics }[]>();
  for (const row of rows) {
    const [, tower, layer, kind] = /^(.*?)(?:blocks|layers)\.(\d+)\.(.+)$/.exec(row.name) ?? [];
    if (layer === undefined) continue;
    const name = `${tower}${kind}`;
    lines.set(name, [...(lines.get(name) ?? []), { layer: Number(layer), row }]);
  }
  if (lines.size === 0)
    throw new RangeError(
      `activationLayers: none of ${rows.length} activations is of a layer, expected names such as vision.blocks.3.resid_post`,
    );
  const { boxes, ...size } = placePanels(4, 2, { aspect: 0.52, left: 62, right: 24, top: 128, bottom: 48, gapX: 66, gapY: 62 });
  const layout: Record<string, unknown> = {};
  boxes.forEach(({ x, y }, i) => {
    const suffix = i === 0 ? "" : String(i + 1);
    layout[`xaxis${suffix}`] = valueAxis(i > 1 ? "layer" : "", {
      domain: x,
      anchor: axis("y", i),
      dtick: lines.size && rows.length > 60 ? undefined : 1,
      tickformat: "d",
    });
    layout[`yaxis${suffix}`] = valueAxis("", {
      domain: y,
      anchor: axis("x", i),
      rangemode: "tozero",
      ...(PANELS[i].key === "dead" ? { tickformat: ".0%", range: [-0.03, 1.03] } : {}),
    });
  });
  return {
    data: [...lines.entries()].flatMap(([name, points], k) =>
      PANELS.map(({ key, title: what }, i) => ({
        type: "scatter",
        mode: "lines+markers",
        name: escapeText(name, 40),
        legendgroup: String(k),
        showlegend: i === 0,
        x: points.map(({ layer }) => layer),
        y: points.map(({ row }) => round(row[key], 4)),
        xaxis: axis("x", i),
        yaxis: axis("y", i),
        line: { color: CATEGORIES[k % CATEGORIES.length], width: 2, dash: k >= CATEGORIES.length ? "dot" : "solid" },
        marker: { size: 5 },
        hovertemplate: `${escapeText(name, 40)}<br>layer %{x}: %{y}<extra>${what}</extra>`,
      })),
    ),
    layout: baseLayout(escapeText(title), "silent: within 1 % of the activation's root mean square at every token", {
      ...layout,
      ...size,
      annotations: boxes.map((box, i) => panelTitle(box, PANELS[i].title)),
      showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.1, yanchor: "bottom" },
    }),
  };
}
