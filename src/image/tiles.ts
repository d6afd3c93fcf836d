/** From any picture to the tiles that a vision-language model reads, with what of the picture each of them shows. */
import { planAnyres, planHighres } from "./anyres";
import { planInternvl } from "./internvl-tiles";
import { planNative } from "./native";
import { planOvis2 } from "./ovis-tiles";
import type { Picture } from "./picture";
import { type ImageProcessor, loadImageProcessor, normalise, orderOf, plainView, valueTable } from "./processor";
import type { Backend, ProcessorConfig } from "./processor-config";
import { checkPinpoints, findTileConfig, readTileConfig, type Scheme, type TileConfig } from "./tile-config";
import { paint, type Size, type Tile, type TilePlan, tileOf } from "./views";

export type { Box, Size, Tile } from "./views";

/** A picture cut up. */
export type Tiled = {
  /** Normalised values [count, size.height, size.width, 3]. */
  pixels: Float32Array;
  count: number;
  /** Of one tile, in pixels. */
  size: Size;
  /** In the order of `pixels`: what each shows. */
  tiles: Tile[];
  /** Of the tiles of kind "tile"; 1 x 1 where the picture is not cut. */
  grid: { rows: number; columns: number };
  /** Of the picture as it came, in pixels (`image_sizes` of LLaVA-NeXT). */
  original: Size;
  /** What each tile shows, before normalising. */
  pictures: Picture[];
};

/** The same without pixels: enough to count tokens. */
export type TileLayout = Pick<Tiled, "count" | "size" | "tiles" | "grid" | "original">;

/** What one call may change, by the names that the reference's processors use. An argument that the family does not know is an error. */
export type TileOverrides = {
  /** Of one tile. */
  size?: Size;
  /** false: the whole picture as one tile. */
  crop_to_patches?: boolean;
  min_patches?: number;
  max_patches?: number;
  use_covering_area_grid?: boolean;
  /** [height, width] of the canvases. */
  image_grid_pinpoints?: [number, number][];
  min_pixels?: number;
  max_pixels?: number;
  /** Pictures in the same message: LLaVA-OneVision cuts only a picture that stands alone, others take no notice. */
  pictures?: number;
};

export type TileProcessor = {
  /** Of one tile, in pixels; where pictures keep their own size (Ovis2.5), the multiple that both sides have. */
  size: Size;
  /** Of each colour channel, for values from 0 to 1. */
  mean: number[];
  std: number[];
  /** What it was made from: plain data, from which another thread makes the same processor. */
  config: TileConfig;
  tile(picture: Picture, overrides?: TileOverrides): Tiled;
  /** How a picture of that size would be cut. */
  layout(original: Size, overrides?: TileOverrides): TileLayout;
};

/**
 * The tile processor of a checkpoint folder: GotOcr2 (InternVL), Ovis2, LLaVA-NeXT, LLaVA-OneVision in transformers' files, InternVL's
 * and LLaVA's original config.json, Ovis2.5. The pixels are those of
 * transformers' PIL processors, or of its torchvision ones where `backend` says so.
 *
 * @throws Error listing every key that is missing, wrong or unknown
 */
export function loadTileProcessor(folder: string, { backend = "pil" as Backend } = {}): TileProcessor {
  const config = readTileConfig(folder);
  return tileProcessor({ ...config, view: { ...config.view, backend } });
}

/** Whichever of the two a folder has. */
export function loadAnyProcessor(folder: string, { backend = "pil" as Backend } = {}): AnyProcessor {
  return findTileConfig(folder)
    ? { kind: "tiles", processor: loadTileProcessor(folder, { backend }) }
    : { kind: "plain", processor: loadImageProcessor(folder, { backend }) };
}
export type AnyProcessor = { kind: "tiles"; processor: TileProcessor } | { kind: "plain"; processor: ImageProcessor };

/** The processor of a configuration whose values have been checked. */
export function tileProcessor(config: TileConfig): TileProcessor {
  const { size, mean, std } = config.view;
  const plan = (original: Size, overrides: TileOverrides = {}): TilePlan => planTiles(original, override(config, overrides), overrides);
  return { size, mean, std, config, ...processorOf(config.view, plan) };
}

/** A processor of one fixed size as one that makes a single tile of kind "base": where does a model without tiles look? */
export function asTileProcessor(processor: ImageProcessor & { config: ProcessorConfig }) {
  const { size, mean, std, config } = processor;
  const grid = { rows: 1, columns: 1 };
  return { size, mean, std, config, ...processorOf(config, (original) => ({ grid, size, views: [plainView(original, config)] })) };
}

type Plan = (original: Size, overrides?: TileOverrides) => TilePlan;

function processorOf(view: ProcessorConfig, plan: Plan): Pick<TileProcessor, "tile" | "layout"> {
  const table = valueTable(view);
  const describe = (original: Size, { grid, size, views }: TilePlan): TileLayout => ({
    count: views.length,
    size,
    grid,
    tiles: views.map((one) => tileOf(one, original)),
    original: { width: original.width, height: original.height },
  });
  const tile = (picture: Picture, overrides?: TileOverrides): Tiled => {
    const made = plan(picture, overrides);
    const pictures = paint(picture, made.views, orderOf(view));
    const each = made.size.height * made.size.width * 3;
    const pixels = new Float32Array(pictures.length * each);
    for (const [i, seen] of pictures.entries()) normalise(seen, table, pixels, i * each);
    return { pixels, pictures, ...describe(picture, made) };
  };
  return { tile, layout: (original, overrides) => describe(original, plan(original, overrides)) };
}

function planTiles(original: Size, { view, scheme }: TileConfig, { pictures = 1 }: TileOverrides): TilePlan {
  switch (scheme.name) {
    case "internvl":
      return planInternvl(original, view, scheme);
    case "ovis2":
      return planOvis2(original, view, scheme);
    case "anyres":
      return planAnyres(original, view, scheme, pictures === 1);
    case "highres":
      return planHighres(original, view, scheme);
    case "native":
      return planNative(original, view, scheme);
  }
}

const isCount = (value: unknown): boolean => Number.isInteger(value) && (value as number) >= 1;
const isFlag = (value: unknown): boolean => typeof value === "boolean";
const CHECKS: { [key in keyof TileOverrides]: { is: (value: unknown) => boolean; expected: string } } = {
  crop_to_patches: { is: isFlag, expected: "true or false" },
  use_covering_area_grid: { is: isFlag, expected: "true or false" },
  min_patches: { is: isCount, expected: "a whole number from 1" },
  max_patches: { is: isCount, expected: "a whole number from 1" },
  min_pixels: { is: isCount, expected: "a whole number from 1" },
  max_pixels: { is: isCount, expected: "a whole number from 1" },
};

/** The configuration with some values replaced. @throws TypeError naming every argument that is wrong or that this family does not know */
function override({ view, scheme }: TileConfig, { pictures = 1, size, image_grid_pinpoints, ...own }: TileOverrides): TileConfig {
  const misfits: string[] = [];
  if (!isCount(pictures)) misfits.push(`pictures: ${pictures}, expected a whole number from 1`);
  const changed: Scheme = { ...scheme };
  for (const [key, value] of Object.entries(own).filter(([, value]) => value !== undefined)) {
    const check = CHECKS[key as keyof TileOverrides];
    if (!check || !(key in scheme)) misfits.push(`${key}: not an argument of ${scheme.name} tiles (${argumentsOf(scheme).join(", ")})`);
    else if (!check.is(value)) misfits.push(`${key}: ${JSON.stringify(value)}, expected ${check.expected}`);
    else Object.assign(changed, { [key]: value });
  }
  const canSize = scheme.name === "internvl" || scheme.name === "ovis2";
  if (size && !canSize)
    misfits.push(`size: the tiles of ${scheme.name} have the size of the tower, ${view.size.height} x ${view.size.width}`);
  if (size && canSize && !(isCount(size.height) && isCount(size.width)))
    misfits.push(`size: ${JSON.stringify(size)}, expected height and width`);
  if (image_grid_pinpoints !== undefined) {
    const sizes =
      changed.name === "anyres"
        ? checkPinpoints(image_grid_pinpoints, view.size)
        : `image_grid_pinpoints: not an argument of ${scheme.name} tiles`;
    if (typeof sizes === "string") misfits.push(sizes);
    else Object.assign(changed, { image_grid_pinpoints: sizes });
  }
  if (misfits.length) throw new TypeError(`tile: ${misfits.join("; ")}`);
  return { view: size ? { ...view, size, resizeTo: size } : view, scheme: changed };
}

const argumentsOf = (scheme: Scheme): string[] => Object.keys(scheme).filter((key) => key in CHECKS);

/**
 * All pictures of one message, as a family treats them together.
 *
 * @throws RangeError for no picture at all
 */
export function tileMessage(processor: TileProcessor, pictures: Picture[], overrides: TileOverrides = {}): Tiled[] {
  if (pictures.length === 0) throw new RangeError("tileMessage: no pictures");
  return pictures.map((picture) => processor.tile(picture, { ...overrides, pictures: pictures.length }));
}

/** Several pictures' tiles in one array [pictures, most tiles, height, width, 3], zeros where a picture has fewer (LLaVA-NeXT's batches). */
export function padTiles(all: Tiled[]): { pixels: Float32Array; shape: [number, number, number, number, number]; counts: number[] } {
  const most = Math.max(...all.map(({ count }) => count));
  const { height, width } = all[0].size;
  const odd = all.findIndex(({ size }) => size.height !== height || size.width !== width);
  if (odd !== -1)
    throw new RangeError(
      `padTiles: tiles of picture ${odd} are ${all[odd].size.height} x ${all[odd].size.width}, of picture 0 ${height} x ${width}`,
    );
  const each = most * height * width * 3;
  const pixels = new Float32Array(all.length * each);
  for (const [i, { pixels: values }] of all.entries()) pixels.set(values, i * each);
  return { pixels, shape: [all.length, most, height, width, 3], counts: all.map(({ count }) => count) };
}
