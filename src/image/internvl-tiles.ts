/** InternVL's dynamic tiling (InternVL 1.5, Chen et al. 2024): the picture stretched onto a grid of tiles, and the whole of it last. */
import { closestGrid } from "./grids";
import { meanColour } from "./processor";
import type { TileConfig } from "./tile-config";
import { gridViews, type Size, squared, stretched, type TilePlan, wholeView } from "./views";

type Internvl = Extract<TileConfig["scheme"], { name: "internvl" }>;

export function planInternvl(original: Size, { size, filter, mean }: TileConfig["view"], scheme: Internvl): TilePlan {
  const isCut = scheme.crop_to_patches && scheme.max_patches > 1;
  if (!isCut) {
    const canvas = scheme.pad2square ? squared(original, size, filter, meanColour(mean)) : stretched(original, size, filter);
    return { grid: { rows: 1, columns: 1 }, size, views: [wholeView(canvas, "base")] };
  }
  const grid = closestGrid(original, size, scheme.min_patches, scheme.max_patches);
  const canvas = stretched(original, { width: size.width * grid.columns, height: size.height * grid.rows }, filter);
  const views = gridViews(canvas, grid, size);
  if (scheme.use_thumbnail && views.length > 1) views.push(wholeView(stretched(original, size, filter), "thumbnail"));
  return { grid, size, views };
}
