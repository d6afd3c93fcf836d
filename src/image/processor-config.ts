/** The image part of a checkpoint's configuration, in all the spellings that published files have. */
import { classOf, findValues, isObject, KeyReader, needValues, readIfThere, type Values } from "./processor-keys";
import type { Filter } from "./resize";
import type { Size } from "./views";

export type Backend = "pil" | "torchvision";

/** What is done to a picture, checked and with the family's defaults filled in. */
export type ProcessorConfig = {
  /** Whether the picture is first padded to a square with the mean colour. */
  pad: boolean;
  /** Shortest edge, exact size, or no resizing. */
  resizeTo: number | Size | null;
  filter: Filter;
  /** What comes out, after the centre crop if there is one. */
  size: Size;
  /** Factor on the bytes, usually 1/255. */
  scale: number;
  mean: number[];
  std: number[];
  /** Values x become (1 - 2 e) x + e after normalising, for this e; 0 but for FLAVA's codebook pictures. */
  squeeze: number;
  /** Whose resizing: Pillow's, on which most checkpoints were trained, or torchvision's, the default of transformers 5 (see resize()). */
  backend: Backend;
  /** What the reference does with a picture that is opened with its transparency: lays it on white, or refuses it. */
  alpha: "white" | "refuse";
};

export const CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073];
export const CLIP_STD = [0.26862954, 0.26130258, 0.27577711];
const HALF = [0.5, 0.5, 0.5];

/** What a class does where its file is silent (the class attributes in transformers 5.23). */
export type Defaults = {
  size: unknown;
  crop: unknown;
  resample: number;
  mean: number[];
  std: number[];
  /** Whether its class turns every picture to RGB, so that transparency is laid on white. */
  convertsRgb: boolean;
  /** Keys of its own that do not change these numbers. */
  harmless?: (string | RegExp)[];
};
export const CLIP: Defaults = {
  size: { shortest_edge: 224 },
  crop: { height: 224, width: 224 },
  resample: 3,
  mean: CLIP_MEAN,
  std: CLIP_STD,
  convertsRgb: true,
};
const SIGLIP: Defaults = { ...CLIP, size: { height: 224, width: 224 }, crop: null, mean: HALF, std: HALF };
const VIT: Defaults = { ...SIGLIP, resample: 2, convertsRgb: false };
export const BLIP: Defaults = { ...CLIP, size: { height: 384, width: 384 }, crop: null };
/** Its masks and codebook pictures are made apart: see loadCodebookProcessor(). */
const FLAVA: Defaults = {
  ...CLIP,
  size: { height: 224, width: 224 },
  convertsRgb: false,
  harmless: [/^codebook_/, /^return_/, /^mask_group_/, "input_size_patches", "total_mask_patches"],
};

/** By class name less its ending; to add a family, add a row. */
const FAMILIES: Record<string, Defaults> = { CLIP, Llava: CLIP, Siglip: SIGLIP, ViT: VIT, Blip: BLIP, Flava: FLAVA };
/** For files that name no class: `model_type` of config.json. */
const MODEL_TYPES: Record<string, string> = { clip: "CLIP", siglip: "Siglip", vit: "ViT", blip: "Blip", "blip-2": "Blip", flava: "Flava" };
/** Families that cut a picture into tiles: loadTileProcessor() reads these. */
export const TILING = ["LlavaNext", "LlavaOnevision", "GotOcr2", "Ovis2"];
/** Families that are not read at all, and cut too. */
const OTHER_TILING = ["InternVL", "Idefics", "Qwen2VL", "Pixtral", "SmolVLM", "Mllama", "Gemma3"];

/** Reads and checks a folder's configuration. @throws Error naming the file and every misfit. */
export function readProcessorConfig(folder: string): ProcessorConfig {
  const config = readIfThere(folder, "config.json");
  const { path, values } = findValues(folder) ?? towerValues(folder, config) ?? needValues(folder);
  const family = findFamily(path, values, config);
  const keys = new KeyReader(path, values);
  const parsed = readView(keys, family);
  const aspect = config.image_aspect_ratio ?? "square";
  if (aspect === "pad" && values.do_pad === undefined) parsed.pad = true;
  else if (!["pad", "square"].includes(String(aspect)))
    keys.misfits.push(`image_aspect_ratio of config.json: ${JSON.stringify(aspect)} cuts into tiles; use loadTileProcessor(folder)`);
  keys.close(family.harmless);
  keys.throwIfMisfit();
  return parsed;
}

/** FLAVA's second picture, from which its codebook makes the visual words of masked image modelling: the keys `codebook_*` (class attributes of 5.23). */
export function readCodebookConfig(folder: string): ProcessorConfig {
  const { path, values } = needValues(folder);
  if (classOf(values) !== "Flava") throw new Error(`${path}: only FlavaImageProcessor has a codebook picture, this is ${classOf(values)}`);
  const own = Object.entries(values).filter(([key]) => key.startsWith("codebook_"));
  const keys = new KeyReader(path, Object.fromEntries(own.map(([key, value]) => [key.slice("codebook_".length), value])));
  const side = { height: 112, width: 112 };
  const family: Defaults = { ...FLAVA, size: side, crop: side, resample: 1, mean: [0, 0, 0], std: [1, 1, 1] };
  const parsed = { ...readView(keys, { ...family, harmless: [] }), squeeze: keys.flag("do_map_pixels", true) ? 0.1 : 0 };
  keys.close();
  keys.throwIfMisfit();
  return parsed;
}

/**
 * What the original LLaVA code does with its tower's own processor: such folders hold no preprocessing file, only the tower's name,
 * `mm_vision_tower`. undefined: no such name.
 */
export function towerValues(folder: string, config: Values): { path: string; values: Values } | undefined {
  const name = config.mm_vision_tower;
  if (name === undefined) return undefined;
  const path = `${folder}/config.json, mm_vision_tower ${JSON.stringify(name)}`;
  const [, kind, side = "224"] = /(clip|siglip)-.*-patch\d+(?:-(\d+))?$/.exec(String(name)) ?? [];
  if (kind === "clip") return { path, values: { image_processor_type: "CLIPImageProcessor", size: Number(side), crop_size: Number(side) } };
  if (kind === "siglip") return { path, values: { image_processor_type: "SiglipImageProcessor", size: Number(side) } };
  throw new Error(`${path}: how this tower's pictures are prepared is not known; put its preprocessor_config.json into the folder`);
}

function findFamily(path: string, values: Values, config: Values): Defaults {
  const given = values.image_processor_type ?? values.feature_extractor_type;
  const family = classOf(values);
  if (family === undefined) {
    const type = String(config.model_type);
    if (Object.hasOwn(MODEL_TYPES, type)) return FAMILIES[MODEL_TYPES[type]];
    throw new Error(
      `${path}: no image_processor_type, and no config.json with a model_type that tells; add "image_processor_type": "CLIPImageProcessor" or what the model was trained with`,
    );
  }
  if (Object.hasOwn(FAMILIES, family)) return FAMILIES[family];
  if (TILING.includes(family))
    throw new Error(`${path}: ${given}: the ${family} family cuts pictures into tiles; use loadTileProcessor(folder)`);
  const tiling = [...TILING, ...OTHER_TILING].find((name) => family.startsWith(name));
  const known = Object.keys(FAMILIES).map((name) => `${name}ImageProcessor`);
  throw new Error(
    tiling
      ? `${path}: ${given}: the ${tiling} family cuts pictures into tiles, and this kind is not supported; supported: ${known.join(", ")}`
      : `${path}: image_processor_type ${JSON.stringify(given)} is not known; supported: ${known.join(", ")}`,
  );
}

/** The keys of one picture of fixed size. What is wrong is left in `keys.misfits`. */
export function readView(keys: KeyReader, family: Defaults): ProcessorConfig {
  const isCropped = keys.flag("do_center_crop", family.crop !== null);
  const crop = isCropped ? keys.crop("crop_size", family.crop) : null;
  const resizeTo = keys.flag("do_resize", true) ? keys.size("size", family.size) : null;
  const filter = keys.filter("resample", family.resample);
  const factor = keys.factor("rescale_factor", 1 / 255);
  const mean = keys.triple("image_mean", family.mean);
  const std = keys.triple("image_std", family.std, 0);
  const scale = keys.flag("do_rescale", true) ? factor : 1;
  const isNormalised = keys.flag("do_normalize", true);
  const pad = classOf(keys.values) === "Llava" && keys.flag("do_pad", false);
  const convertsRgb = keys.flag("do_convert_rgb", family.convertsRgb);

  const size = crop ?? (isObject(resizeTo) ? resizeTo : null);
  if (!size && keys.misfits.length === 0)
    keys.misfits.push(
      "size: without a centre crop or an exact height and width, pictures come out in different sizes and cannot form a batch",
    );
  return {
    pad,
    resizeTo,
    filter,
    size: size ?? { height: 1, width: 1 },
    scale,
    mean: isNormalised ? mean : [0, 0, 0],
    std: isNormalised ? std : [1, 1, 1],
    squeeze: 0,
    backend: "pil",
    alpha: convertsRgb ? "white" : "refuse",
  };
}
