/** The configuration of families that cut a picture into tiles, from transformers' files and from those of the original repositories. */
import { CLIP, type Defaults, type ProcessorConfig, readView, TILING, towerValues } from "./processor-config";
import { classOf, findValues, isEdge, isObject, KeyReader, needValues, readIfThere, type Values } from "./processor-keys";
import type { Size } from "./views";

/** How a family cuts, with the numbers of its file. */
export type Scheme =
  /** A grid of the closest aspect ratio, a thumbnail last (InternVL). */
  | { name: "internvl"; crop_to_patches: boolean; min_patches: number; max_patches: number; use_thumbnail: boolean; pad2square: boolean }
  /** The smallest grid that covers the picture, the thumbnail first (Ovis2). */
  | { name: "ovis2"; crop_to_patches: boolean; min_patches: number; max_patches: number; use_covering_area_grid: boolean }
  /** The best of some canvases, the whole picture first (LLaVA-NeXT; LLaVA-OneVision with a limit of tiles in features). Sizes, not lists. */
  | { name: "anyres"; image_grid_pinpoints: Size[]; max_tiles: number | null; single: "always" | "alone" }
  /** The picture padded to one large square, the whole picture first (LLaVA-1.5-HD). */
  | { name: "highres"; side: number }
  /** No tiles: sides that are multiples of `factor` (Ovis2.5). */
  | { name: "native"; factor: number; min_pixels: number; max_pixels: number };

/** `view`: how one tile is normalised and how large it is. Plain data, from which another thread makes the same processor. */
export type TileConfig = { view: ProcessorConfig; scheme: Scheme };

const IMAGENET = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
const SQUARE: Defaults = { ...CLIP, size: { height: 384, width: 384 }, crop: null };
const NEXT_PINPOINTS = pairs([336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]);
const ONEVISION_PINPOINTS = [1, 2, 3, 4, 5, 6].flatMap((h) => [1, 2, 3, 4, 5, 6].map((w) => ({ height: h * 384, width: w * 384 })));

function pairs(...list: [number, number][]): Size[] {
  return list.map(([height, width]) => ({ height, width }));
}

/** Reads and checks a folder's configuration; undefined where its pictures are not cut. @throws Error naming the file and every misfit. */
export function findTileConfig(folder: string): TileConfig | undefined {
  const config = readIfThere(folder, "config.json");
  if (config.model_type === "internvl_chat") return readInternvlChat(folder, config);
  if (/^ovis2_5$|^ovis2\.5$/.test(String(config.model_type)) || isOvis25(config)) return readNative(folder, config);
  const { path, values } = findValues(folder) ?? towerValues(folder, config) ?? {};
  const family = values && classOf(values);
  const aspect = String(config.image_aspect_ratio ?? "square");
  if (path === undefined || values === undefined) return undefined;
  if (!TILING.includes(String(family)))
    return /^anyres|^highres$/.test(aspect) ? readOriginalLlava(path, values, config, aspect) : undefined;
  const keys = new KeyReader(path, values);
  const read = { GotOcr2: readGotOcr2, Ovis2: readOvis2, LlavaNext: readNext, LlavaOnevision: readOnevision }[family as "GotOcr2"];
  return finish(keys, read(keys, folder, config));
}

/** The same, or an error. */
export function readTileConfig(folder: string): TileConfig {
  const found = findTileConfig(folder);
  if (found) return found;
  const { path, values } = needValues(folder);
  throw new Error(`${path}: ${classOf(values)} does not cut pictures into tiles; use loadImageProcessor(folder)`);
}

function finish(keys: KeyReader, made: TileConfig): TileConfig {
  if (!keys.flag("do_resize", true)) keys.misfits.push("do_resize: false is not supported where pictures are cut into tiles");
  keys.close();
  keys.throwIfMisfit();
  return made;
}

/** InternVL in transformers. Its processor cuts although the file says `crop_to_patches: false`; GOT-OCR2's own does as the file says. */
function readGotOcr2(keys: KeyReader, folder: string, config: Values): TileConfig {
  const isInternvl =
    config.model_type === "internvl" || readIfThere(folder, "processor_config.json").processor_class === "InternVLProcessor";
  const says = keys.flag("crop_to_patches", false);
  const [min_patches, max_patches] = tileRange(keys);
  const scheme: Scheme = {
    name: "internvl",
    crop_to_patches: isInternvl || says,
    min_patches,
    max_patches,
    use_thumbnail: true,
    pad2square: false,
  };
  return { view: readView(keys, SQUARE), scheme };
}

function readOvis2(keys: KeyReader): TileConfig {
  const [min_patches, max_patches] = tileRange(keys);
  const crop_to_patches = keys.flag("crop_to_patches", false);
  const use_covering_area_grid = keys.flag("use_covering_area_grid", true);
  return { view: readView(keys, SQUARE), scheme: { name: "ovis2", crop_to_patches, min_patches, max_patches, use_covering_area_grid } };
}

function tileRange(keys: KeyReader): [least: number, most: number] {
  return [keys.count("min_patches", 1), keys.count("max_patches", 12)];
}

function readNext(keys: KeyReader): TileConfig {
  const view = readView(keys, CLIP);
  return {
    view,
    scheme: { name: "anyres", image_grid_pinpoints: pinpoints(keys, view, NEXT_PINPOINTS), max_tiles: null, single: "always" },
  };
}

function readOnevision(keys: KeyReader, folder: string, config: Values): TileConfig {
  const view = readView(keys, SQUARE);
  const [inProcessor, inConfig] = [readIfThere(folder, "processor_config.json").vision_aspect_ratio, config.vision_aspect_ratio];
  if (inProcessor !== undefined && inConfig !== undefined && inProcessor !== inConfig)
    keys.misfits.push(`vision_aspect_ratio: ${JSON.stringify(inProcessor)}, but config.json says ${JSON.stringify(inConfig)}`);
  const max_tiles = tileLimit(String(inProcessor ?? inConfig ?? "anyres_max_9"));
  if (max_tiles === null)
    keys.misfits.push(`vision_aspect_ratio: ${JSON.stringify(inProcessor ?? inConfig)}, expected "anyres_max_" and a number`);
  return { view, scheme: { name: "anyres", image_grid_pinpoints: pinpoints(keys, view, ONEVISION_PINPOINTS), max_tiles, single: "alone" } };
}

const tileLimit = (text: string): number | null => {
  const [, count] = /^anyres_max_(\d+)$/.exec(text) ?? [];
  return count === undefined || Number(count) < 1 ? null : Number(count);
};

/** Pairs of (height, width), each a whole number of square tiles. `do_pad` is about batches and `aspect_ratio_setting` a name. */
function pinpoints(keys: KeyReader, view: ProcessorConfig, standard: Size[]): Size[] {
  keys.flag("do_pad", true);
  keys.get("aspect_ratio_setting", "anyres", (value): value is string => value === "anyres", '"anyres"');
  const { resizeTo, size } = view;
  const edge = typeof resizeTo === "number" ? { height: resizeTo, width: resizeTo } : resizeTo;
  const isSquare = size.height === size.width && edge?.height === size.height && edge.width === size.width;
  if (!isSquare && keys.misfits.length === 0)
    keys.misfits.push(`size ${JSON.stringify(resizeTo)} and crop ${JSON.stringify(size)}: tiles are square, and of both sizes`);
  const given = keys.values.image_grid_pinpoints;
  const list = keys.get("image_grid_pinpoints", null, Array.isArray as (value: unknown) => value is never, "a list of [height, width]");
  const sizes = list === null && (given ?? null) === null ? standard : checkPinpoints(given, size);
  if (typeof sizes === "string") keys.misfits.push(sizes);
  return typeof sizes === "string" ? standard : sizes;
}

/** [height, width] pairs as sizes, or what is wrong with them. */
export function checkPinpoints(list: unknown, { height, width }: Size): Size[] | string {
  const isPair = (one: unknown): one is [number, number] =>
    Array.isArray(one) && one.length === 2 && isEdge(one[0]) && isEdge(one[1]) && one[0] % height === 0 && one[1] % width === 0;
  if (Array.isArray(list) && list.length > 0 && list.every(isPair)) return pairs(...list);
  return `image_grid_pinpoints: ${JSON.stringify(list)?.slice(0, 80)}, expected pairs [height, width] of multiples of the tile's ${height} x ${width}`;
}

/**
 * The original LLaVA code. Its pinpoints are (width, height), and `highres` (LLaVA-1.5-HD) names the side of one large square, the
 * largest of a comma-separated list: a whole number of tiles, as many as fit.
 */
function readOriginalLlava(path: string, values: Values, config: Values, aspect: string): TileConfig {
  const isSiglip = classOf(values) === "Siglip";
  const keys = new KeyReader(path, values);
  const view = readView(keys, isSiglip ? { ...SQUARE, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] } : CLIP);
  keys.close();
  const given = config.image_grid_pinpoints;
  const { height: side } = view.size;
  if (view.size.width !== side) keys.misfits.push(`crop ${JSON.stringify(view.size)}: tiles are square`);
  if (aspect === "highres") {
    const largest = Math.max(...String(given).split(",").map(Number));
    if (!isEdge(largest) || largest < side)
      keys.misfits.push(`image_grid_pinpoints of config.json: ${JSON.stringify(given)}, expected sides from ${side} on, such as "336,672"`);
    keys.throwIfMisfit();
    return { view, scheme: { name: "highres", side: largest } };
  }
  const turned = Array.isArray(given) ? given.map((one) => (Array.isArray(one) ? [...one].reverse() : one)) : given;
  const sizes = checkPinpoints(turned, view.size);
  if (typeof sizes === "string") keys.misfits.push(`${sizes}; config.json has them as [width, height]`);
  const max_tiles = tileLimit(aspect);
  if (aspect !== "anyres" && max_tiles === null)
    keys.misfits.push(`image_aspect_ratio of config.json: ${JSON.stringify(aspect)}, expected "anyres" or "anyres_max_" and a number`);
  keys.throwIfMisfit();
  const image_grid_pinpoints = sizes as Size[];
  return { view, scheme: { name: "anyres", image_grid_pinpoints, max_tiles, single: max_tiles === null ? "always" : "alone" } };
}

/** InternVL's original repository: tiles as config.json says; mean and std of the preprocessing file, whose other keys its code does not read. */
function readInternvlChat(folder: string, config: Values): TileConfig {
  const vision = isObject(config.vision_config) ? config.vision_config : {};
  const own = findValues(folder)?.values ?? {};
  const keys = new KeyReader(`${folder}/config.json`, config);
  const side = keys.count("force_image_size", isEdge(vision.image_size) ? vision.image_size : 448, 8192);
  const scheme: Scheme = {
    name: "internvl",
    crop_to_patches: keys.flag("dynamic_image_size", false),
    min_patches: keys.count("min_dynamic_patch", 1),
    max_patches: keys.count("max_dynamic_patch", 12),
    use_thumbnail: keys.flag("use_thumbnail", false),
    pad2square: keys.flag("pad2square", false),
  };
  const colours = new KeyReader(`${folder}/preprocessor_config.json`, own);
  const [mean, std] = [colours.triple("image_mean", IMAGENET.mean), colours.triple("image_std", IMAGENET.std, 0)];
  keys.misfits.push(...colours.misfits);
  keys.throwIfMisfit();
  return { view: viewOf({ height: side, width: side }, mean, std), scheme };
}

/** A tile of fixed size, bicubic, values from 0 to 1 normalised. */
const viewOf = (size: Size, mean: number[], std: number[]): ProcessorConfig => ({
  pad: false,
  resizeTo: size,
  filter: "bicubic",
  size,
  scale: 1 / 255,
  mean,
  std,
  squeeze: 0,
  backend: "pil",
  alpha: "white",
});

const isOvis25 = (config: Values): boolean => isObject(config.vit_config) && "hidden_stride" in config.vit_config;

/** Ovis2.5: sides of whole strides of patches, between the pixels of 448 x 448 and 1344 x 1792. */
function readNative(folder: string, config: Values): TileConfig {
  const vit = isObject(config.vit_config) ? config.vit_config : {};
  const { path, values } = findValues(folder) ?? { path: `${folder}/config.json`, values: {} };
  const tower = new KeyReader(`${folder}/config.json, vit_config`, vit);
  const factor = tower.count("patch_size", 16) * tower.count("hidden_stride", 2);
  const keys = new KeyReader(path, values);
  keys.misfits.push(...tower.misfits);
  const [mean, std] = [keys.triple("image_mean", [0.5, 0.5, 0.5]), keys.triple("image_std", [0.5, 0.5, 0.5], 0)];
  const [min_pixels, max_pixels] = [keys.count("min_pixels", 448 * 448, 1e8), keys.count("max_pixels", 1344 * 1792, 1e8)];
  if (max_pixels < factor ** 2) keys.misfits.push(`max_pixels: ${max_pixels}, expected at least ${factor} x ${factor}`);
  if (min_pixels > max_pixels) keys.misfits.push(`min_pixels ${min_pixels} is above max_pixels ${max_pixels}`);
  const filter = keys.filter("resample", 3);
  keys.throwIfMisfit();
  const view = { ...viewOf({ height: factor, width: factor }, mean, std), filter };
  return { view, scheme: { name: "native", factor, min_pixels, max_pixels } };
}
