import type { Picture } from "../image/picture";
import type { Figure, Grid, Rows } from "./figure";
import { expectPatches, shapeOf } from "./numbers";
import { axis, cellAxes, NOTHING, panelTitle, placePanels, underPanel } from "./panels";
import { pca } from "./pca";
import { pictureUri, sideFor } from "./picture";
import { baseLayout, escapeText } from "./style";

/**
 * Patch embeddings [N, D] as colours: their first three principal components are red, green and blue (as in Oquab et al. 2023, figure 1),
 * beside the picture and over it. Patches of like colour are alike to the model; the colours themselves mean nothing.
 * N = rows x columns, row by row, without [CLS]. picture: what the model sees.
 */
export function patchPca(embeddings: Rows, grid: Grid, picture: Picture, { title = "Patch embeddings as colours" } = {}): Figure {
  const [count, width] = shapeOf("patchPca", "embeddings", embeddings);
  expectPatches("patchPca", "embeddings", count, grid);
  if (count < 4 || width < 3) throw new RangeError(`patchPca: ${count} embeddings of width ${width}, expected at least 4 of width 3`);
  const { scores, variance } = pca(embeddings, 3);
  const colors = toColors(scores);
  const [rows, columns] = grid;
  const z = Array.from({ length: rows }, (_, r) => colors.slice(r * columns, (r + 1) * columns));
  const { boxes, ...size } = placePanels(3, 3, { aspect: rows / columns });
  const shares = variance.map((v) => `${Math.round(v * 100)} %`);
  const uri = pictureUri("patchPca", picture, sideFor(2, 300));
  const image = (i: number, opacity: number) => ({
    type: "image",
    z,
    opacity,
    xaxis: axis("x", i),
    yaxis: axis("y", i),
    hovertemplate: "row %{y}, column %{x}<br>colour %{color}<extra></extra>",
  });
  return {
    data: [NOTHING, image(1, 1), image(2, 0.62)],
    layout: baseLayout(escapeText(title), `first three principal components: ${shares.join(", ")} of the variance`, {
      ...Object.assign({}, ...boxes.map((box, i) => cellAxes(i, box, grid))),
      images: [0, 2].map((i) => underPanel(i, uri, grid)),
      annotations: ["picture", "components 1-3", "both"].map((text, i) => panelTitle(boxes[i], text)),
      ...size,
    }),
  };
}

/** Each component from its 2nd to its 98th percentile onto 0-255: single odd patches do not take all the contrast. */
function toColors(scores: Float64Array[]): number[][] {
  const bounds = [0, 1, 2].map((k) => {
    const sorted = scores.map((s) => s[k]).sort((a, b) => a - b);
    const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))];
    return [at(0.02), at(0.98)];
  });
  return scores.map((s) =>
    bounds.map(([low, high], k) => Math.round(255 * Math.min(1, Math.max(0, high > low ? (s[k] - low) / (high - low) : 0.5)))),
  );
}
