/** Ovis2's tiling: the whole picture first, then the smallest grid that keeps its detail. */
import { closestGrid, coveringGrid } from "./grids";
import type { TileConfig } from "./tile-config";
import { gridViews, type Size, stretched, type TilePlan, wholeView } from "./views";

type Ovis2 = Extract<TileConfig["scheme"], { name: "ovis2" }>;

export function planOvis2(original: Size, { size, filter }: TileConfig["view"], scheme: Ovis2): TilePlan {
  const whole = stretched(original, size, filter);
  if (!scheme.crop_to_patches || scheme.max_patches <= 1) return { grid: { rows: 1, columns: 1 }, size, views: [wholeView(whole, "base")] };
  const grid = scheme.use_covering_area_grid
    ? coveringGrid(original, size.height, scheme.max_patches)
    : closestGrid(original, size, scheme.min_patches, scheme.max_patches);
  const canvas = stretched(original, { width: size.width * grid.columns, height: size.height * grid.rows }, filter);
  const views = gridViews(canvas, grid, size);
  return { grid, size, views: views.length > 1 ? [wholeView(whole, "thumbnail"), ...views] : views };
}
