import type { Picture } from "../image/picture";
import type { Figure, Grid, Vector } from "./figure";
import { patchesOf, round, toGrid } from "./numbers";
import { cellAxes, underPanel } from "./panels";
import { pictureUri } from "./picture";
import { AMOUNT, baseLayout, colorBar, escapeText, OVERLAY } from "./style";

/**
 * One row of an attention pattern as a map: how much one token (mostly [CLS]) looks at each patch.
 * row: 1 + rows x columns weights, [CLS] first; its own weight is in the note, not in the map. With `picture` (what the model sees) the
 * map lies over it, `opacity` 0-1.
 */
export function attentionMap(
  row: Vector,
  grid: Grid,
  { picture, opacity = 0.6, title = "Attention over the patches" }: { picture?: Picture; opacity?: number; title?: string } = {},
): Figure {
  const patches = patchesOf("attentionMap", grid);
  if (row.length !== patches + 1)
    throw new RangeError(
      `attentionMap: ${row.length} weights for a ${grid[0]}x${grid[1]} grid, expected ${patches + 1} ([CLS] and the patches)`,
    );
  const [w, h] = [460, Math.round((460 * grid[0]) / grid[1])];
  return {
    data: [
      {
        type: "heatmap",
        z: toGrid(Array.from(row).slice(1), grid),
        zmin: 0,
        colorscale: picture ? OVERLAY : AMOUNT,
        opacity: picture ? opacity : 1,
        colorbar: colorBar("weight"),
        hovertemplate: "row %{y}, column %{x}<br>weight %{z}<extra></extra>",
      },
    ],
    layout: baseLayout(escapeText(title), `left out: ${round(row[0], 2)} on [CLS]`, {
      ...cellAxes(0, { x: [0, 1], y: [0, 1] }, grid),
      images: picture ? [underPanel(0, pictureUri("attentionMap", picture), grid)] : [],
      width: w + 110,
      height: h + 96,
      margin: { l: 18, r: 92, t: 78, b: 18 },
    }),
  };
}
