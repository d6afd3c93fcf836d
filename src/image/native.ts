/** Pictures in (nearly) their own size, for towers that take any (Ovis2.5). */
import type { TileConfig } from "./tile-config";
import { type Size, stretched, type TilePlan, wholeView } from "./views";

type Native = Extract<TileConfig["scheme"], { name: "native" }>;

/** A longer picture is squeezed to this aspect ratio. */
const MOST_EXTREME = 200;

/**
 * The size a picture is resized to: both sides multiples of `factor` (patch x stride), the pixels between min_pixels and max_pixels,
 * the aspect ratio kept as far as that allows. The arithmetic is that of Qwen2-VL's smart_resize as Ovis2.5 changed it: a side below
 * `factor` is raised to it, else an aspect ratio above 200 is clamped. Of a thin picture that arithmetic may leave no pixel: here the
 * short side is then one `factor`, and the long one as long as max_pixels allows.
 */
export function smartResize(original: Size, limits: Omit<Native, "name">): Size {
  const { factor, max_pixels } = limits;
  const { height, width } = Math.min(original.height, original.width) < factor ? raised(original, factor) : clamped(original);
  const fitted = fit({ height, width }, limits);
  if (fitted.height && fitted.width) return fitted;
  const long = Math.max(1, Math.floor(Math.min(Math.max(height, width), max_pixels / factor) / factor)) * factor;
  return height < width ? { height: factor, width: long } : { height: long, width: factor };
}

function raised({ height, width }: Size, factor: number): Size {
  if (height < width) return { height: factor, width: halfEven((factor / height) * width) };
  return { height: halfEven((factor / width) * height), width: factor };
}

function clamped({ height, width }: Size): Size {
  return { height: Math.min(height, MOST_EXTREME * width), width: Math.min(width, MOST_EXTREME * height) };
}

/** Multiples of `factor` nearest to the size, or to the size with the allowed pixels; 0 where a side vanishes. */
function fit({ height, width }: Size, { factor, min_pixels, max_pixels }: Omit<Native, "name">): Size {
  const scaled = (by: (x: number) => number, round: (x: number) => number): Size => ({
    height: round(by(height) / factor) * factor,
    width: round(by(width) / factor) * factor,
  });
  const rounded = scaled((x) => x, halfEven);
  const pixels = rounded.height * rounded.width;
  const shrink = Math.sqrt((height * width) / max_pixels);
  const grow = Math.sqrt(min_pixels / (height * width));
  if (pixels > max_pixels) return scaled((x) => x / shrink, Math.floor);
  return pixels < min_pixels ? scaled((x) => x * grow, Math.ceil) : rounded;
}

/** Python's round(): halves to the even neighbour. */
function halfEven(x: number): number {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

/** One view of the whole picture. */
export function planNative(original: Size, { filter }: TileConfig["view"], scheme: Native): TilePlan {
  const size = smartResize(original, scheme);
  const grid = { rows: 1, columns: 1 };
  return { grid, size, views: [wholeView(stretched(original, size, filter), "base")] };
}
