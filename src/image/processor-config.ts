/** The image part of a checkpoint's configuration, in all the spellings that published files have. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { readJson } from "../files/json";
import { nearest } from "../files/nearest";
import type { Filter } from "./resize";

/** What is done to a picture, checked and with the family's defaults filled in. */
export type ProcessorConfig = {
  /** Shortest edge, exact size, or no resizing. */
  resizeTo: number | Size | null;
  filter: Filter;
  /** What comes out, after the centre crop if there is one. */
  size: Size;
  /** Factor on the bytes, usually 1/255. */
  scale: number;
  mean: number[];
  std: number[];
};
type Size = { height: number; width: number };

/** Pillow's numbers of its filters. */
const FILTERS: Filter[] = ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"];

const CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD = [0.26862954, 0.26130258, 0.27577711];
const HALF = [0.5, 0.5, 0.5];

/** What a class does where its file is silent (the class attributes in transformers 5.23). */
type Defaults = { size: unknown; crop: unknown; resample: number; mean: number[]; std: number[] };
const CLIP: Defaults = { size: { shortest_edge: 224 }, crop: { height: 224, width: 224 }, resample: 3, mean: CLIP_MEAN, std: CLIP_STD };
const SIGLIP: Defaults = { size: { height: 224, width: 224 }, crop: null, resample: 3, mean: HALF, std: HALF };
const VIT: Defaults = { ...SIGLIP, resample: 2 };
const BLIP: Defaults = { size: { height: 384, width: 384 }, crop: null, resample: 3, mean: CLIP_MEAN, std: CLIP_STD };

/** By class name less its ending; to add a family, add a row. */
const FAMILIES: Record<string, Defaults> = { CLIP, Siglip: SIGLIP, ViT: VIT, Blip: BLIP };
/** For files that name no class: `model_type` of config.json. */
const MODEL_TYPES: Record<string, string> = { clip: "CLIP", siglip: "Siglip", vit: "ViT", blip: "Blip", "blip-2": "Blip" };
/** Families that cut a picture into tiles or patches of many sizes. */
const TILING = [
  "LlavaNext",
  "LlavaOnevision",
  "GotOcr2",
  "InternVL",
  "Ovis2",
  "Idefics",
  "Qwen2VL",
  "Pixtral",
  "SmolVLM",
  "Mllama",
  "Gemma3",
];

/** Keys whose values are read here. */
const KNOWN = [
  "do_resize",
  "size",
  "resample",
  "do_center_crop",
  "crop_size",
  "do_rescale",
  "rescale_factor",
  "do_normalize",
  "image_mean",
  "image_std",
];
/** Keys that do not change the numbers: names, and how Python should hold its arrays. Ours are always RGB. */
const HARMLESS = [
  "image_processor_type",
  "feature_extractor_type",
  "processor_class",
  "do_convert_rgb",
  "_valid_processor_keys",
  "return_tensors",
  "data_format",
  "input_data_format",
  "device",
  "disable_grouping",
  "backend",
  "transformers_version",
  "_name_or_path",
  "is_local",
  "local_files_only",
  "auto_map",
];
/** Keys that change the numbers unless they have this value. */
const ONLY: Record<string, unknown> = { do_pad: false, use_square_size: false, default_to_square: false };

/** Larger pictures than any model takes are a mistake in the file. */
const MAX_EDGE = 8192;

/** Reads and checks a folder's configuration. @throws Error naming the file and every misfit. */
export function readProcessorConfig(folder: string): ProcessorConfig {
  const { path, values } = findConfig(folder);
  const family = findFamily(folder, path, values);
  return parse(path, values, family);
}

/** Nested first, as transformers 5 looks for it. */
function findConfig(folder: string): { path: string; values: Record<string, unknown> } {
  const [nested, flat] = [join(folder, "processor_config.json"), join(folder, "preprocessor_config.json")];
  if (existsSync(nested)) {
    const values = readJson(nested).image_processor;
    if (isObject(values)) return { path: nested, values };
  }
  if (existsSync(flat)) return { path: flat, values: readJson(flat) };
  throw new Error(
    `${folder}: neither preprocessor_config.json nor processor_config.json with "image_processor" says how pictures are prepared`,
  );
}

function findFamily(folder: string, path: string, values: Record<string, unknown>): Defaults {
  const given = values.image_processor_type ?? values.feature_extractor_type;
  if (given === undefined) {
    const config = join(folder, "config.json");
    const type = existsSync(config) ? String(readJson(config).model_type) : "";
    if (Object.hasOwn(MODEL_TYPES, type)) return FAMILIES[MODEL_TYPES[type]];
    throw new Error(
      `${path}: no image_processor_type, and no config.json with a model_type that tells; add "image_processor_type": "CLIPImageProcessor" or what the model was trained with`,
    );
  }
  const family = String(given).replace(/(ImageProcessor(Fast|Pil)?|FeatureExtractor)$/, "");
  if (Object.hasOwn(FAMILIES, family)) return FAMILIES[family];
  const tiling = TILING.find((name) => family.startsWith(name));
  const known = Object.keys(FAMILIES).map((name) => `${name}ImageProcessor`);
  throw new Error(
    tiling
      ? `${path}: ${given}: the ${tiling} family cuts pictures into tiles, which is not supported yet; supported: ${known.join(", ")}`
      : `${path}: image_processor_type ${JSON.stringify(given)} is not known; supported: ${known.join(", ")}`,
  );
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);
const isEdge = (value: unknown): value is number => Number.isInteger(value) && (value as number) > 0 && (value as number) <= MAX_EDGE;

/** Reads keys of one file, and gathers what is wrong with them. */
function reader(values: Record<string, unknown>) {
  const misfits: string[] = [];
  const get = <T>(key: string, standard: T, check: (value: unknown) => value is T, expected: string): T => {
    const value = values[key] ?? standard; // transformers reads null as "not given"
    if (value === standard || check(value)) return value as T;
    misfits.push(`${key}: ${JSON.stringify(value)}, expected ${expected}`);
    return standard;
  };
  const flag = (key: string, standard: boolean) =>
    get(key, standard, (value): value is boolean => typeof value === "boolean", "true or false");
  return { misfits, get, flag };
}

function parse(path: string, values: Record<string, unknown>, family: Defaults): ProcessorConfig {
  const { misfits, get, flag } = reader(values);
  const isFactor = (value: unknown): value is number => typeof value === "number" && Number.isFinite(value) && value > 0;
  const triple =
    (least: number) =>
    (value: unknown): value is number[] =>
      Array.isArray(value) && value.length === 3 && value.every((v) => typeof v === "number" && Number.isFinite(v) && v > least);
  const isCode = (value: unknown): value is number => Number.isInteger(value) && (value as number) in FILTERS;

  const isCropped = flag("do_center_crop", family.crop !== null);
  const crop = isCropped ? readCrop(values.crop_size ?? family.crop, misfits) : null;
  const resizeTo = flag("do_resize", true) ? readSize(values.size ?? family.size, family, misfits) : null;
  const filter = FILTERS[get("resample", family.resample, isCode, "0 to 5 (Pillow's filters)")];
  const factor = get("rescale_factor", 1 / 255, isFactor, "a number above 0");
  const mean = get("image_mean", family.mean, triple(Number.NEGATIVE_INFINITY), "three numbers");
  const std = get("image_std", family.std, triple(0), "three numbers above 0");
  const scale = flag("do_rescale", true) ? factor : 1;
  const isNormalised = flag("do_normalize", true);

  misfits.push(...unknownKeys(values));
  const size = crop ?? (typeof resizeTo === "number" ? null : resizeTo);
  if (!size && misfits.length === 0)
    misfits.push("size: without a centre crop or an exact height and width, pictures come out in different sizes and cannot form a batch");
  if (misfits.length > 0) throw new Error(`${path} cannot be followed:\n${misfits.map((line) => `  ${line}`).join("\n")}`);
  return { resizeTo, filter, size: size as Size, scale, mean: isNormalised ? mean : [0, 0, 0], std: isNormalised ? std : [1, 1, 1] };
}

/** size: 224 (old files), { shortest_edge } or { height, width }. */
function readSize(value: unknown, family: Defaults, misfits: string[]): number | Size {
  if (isEdge(value)) return isObject(family.size) && "shortest_edge" in family.size ? value : { height: value, width: value };
  if (isObject(value)) {
    const keys = Object.keys(value)
      .filter((key) => value[key] !== null)
      .sort()
      .join();
    if (keys === "shortest_edge" && isEdge(value.shortest_edge)) return value.shortest_edge;
    if (keys === "height,width" && isEdge(value.height) && isEdge(value.width)) return { height: value.height, width: value.width };
  }
  misfits.push(`size: ${JSON.stringify(value)}, expected a number, {"shortest_edge"} or {"height", "width"}, of 1 to ${MAX_EDGE}`);
  return 1;
}

/** crop_size: 224 or { height, width }. */
function readCrop(value: unknown, misfits: string[]): Size {
  if (isEdge(value)) return { height: value, width: value };
  if (isObject(value) && isEdge(value.height) && isEdge(value.width)) return { height: value.height, width: value.width };
  misfits.push(`crop_size: ${JSON.stringify(value)}, expected a number or {"height", "width"}, of 1 to ${MAX_EDGE}`);
  return { height: 1, width: 1 };
}

function unknownKeys(values: Record<string, unknown>): string[] {
  const misfits: string[] = [];
  for (const [key, value] of Object.entries(values)) {
    if (value === null || KNOWN.includes(key) || HARMLESS.includes(key)) continue; // null is "not given"
    if (Object.hasOwn(ONLY, key)) {
      if (value !== ONLY[key]) misfits.push(`${key}: ${JSON.stringify(value)} is not supported, only ${JSON.stringify(ONLY[key])}`);
      continue;
    }
    const meant = nearest(key, KNOWN);
    misfits.push(`${key}: unknown${meant ? `; did you mean ${meant}?` : ", and it may change the numbers"}`);
  }
  return misfits;
}
