/** Reading the keys of one preprocessing file: where it lies, its values, and everything that is wrong with them at once. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { readJson } from "../files/json";
import { nearest } from "../files/nearest";
import type { Filter } from "./resize";
import type { Size } from "./views";

export type Values = Record<string, unknown>;

/** Pillow's numbers of its filters. */
export const FILTERS: Filter[] = ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"];

/** Keys that say how a picture of fixed size is made. */
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
const ONLY: Values = { do_pad: false, use_square_size: false, default_to_square: false };

/** Larger pictures than any model takes are a mistake in the file. */
export const MAX_EDGE = 8192;

/** The values of a folder's preprocessing file, nested ones first, as transformers 5 looks for it; undefined where there is none. */
export function findValues(folder: string): { path: string; values: Values } | undefined {
  const [nested, flat] = [join(folder, "processor_config.json"), join(folder, "preprocessor_config.json")];
  if (existsSync(nested)) {
    const values = readJson(nested).image_processor;
    if (isObject(values)) return { path: nested, values };
  }
  return existsSync(flat) ? { path: flat, values: readJson(flat) } : undefined;
}

/** The same, or an error. */
export function needValues(folder: string): { path: string; values: Values } {
  const found = findValues(folder);
  if (found) return found;
  throw new Error(
    `${folder}: neither preprocessor_config.json nor processor_config.json with "image_processor" says how pictures are prepared`,
  );
}

/** A JSON file of a folder, empty where there is none. */
export function readIfThere(folder: string, name: string): Values {
  const path = join(folder, name);
  return existsSync(path) ? readJson(path) : {};
}

/** The class that a file names, less its ending ("CLIPImageProcessorFast" is "CLIP"); undefined where it names none. */
export function classOf(values: Values): string | undefined {
  const given = values.image_processor_type ?? values.feature_extractor_type;
  return given === undefined ? undefined : String(given).replace(/(ImageProcessor(Fast|Pil)?|FeatureExtractor)$/, "");
}

export const isObject = (value: unknown): value is Values => typeof value === "object" && value !== null && !Array.isArray(value);
export const isEdge = (value: unknown): value is number =>
  Number.isInteger(value) && (value as number) > 0 && (value as number) <= MAX_EDGE;

/** Reads the keys of one file, and gathers what is wrong with them. */
export class KeyReader {
  readonly misfits: string[] = [];
  readonly #asked = new Set<string>();

  constructor(
    readonly path: string,
    readonly values: Values,
  ) {}

  /** The value of a key, or the standard where it is absent or null (transformers reads null as "not given"). */
  get<T>(key: string, standard: T, check: (value: unknown) => value is T, expected: string): T {
    this.#asked.add(key);
    const value = this.values[key] ?? standard;
    if (value === standard || check(value)) return value as T;
    this.misfits.push(`${key}: ${JSON.stringify(value)}, expected ${expected}`);
    return standard;
  }

  flag(key: string, standard: boolean): boolean {
    return this.get(key, standard, (value): value is boolean => typeof value === "boolean", "true or false");
  }

  /** A whole number of at least 1. */
  count(key: string, standard: number, most = 1000): number {
    const check = (value: unknown): value is number => Number.isInteger(value) && (value as number) >= 1 && (value as number) <= most;
    return this.get(key, standard, check, `a whole number from 1 to ${most}`);
  }

  factor(key: string, standard: number): number {
    const check = (value: unknown): value is number => typeof value === "number" && Number.isFinite(value) && value > 0;
    return this.get(key, standard, check, "a number above 0");
  }

  /** Three numbers above `least`. */
  triple(key: string, standard: number[], least = Number.NEGATIVE_INFINITY): number[] {
    const check = (value: unknown): value is number[] =>
      Array.isArray(value) && value.length === 3 && value.every((v) => typeof v === "number" && Number.isFinite(v) && v > least);
    return this.get(key, standard, check, least === 0 ? "three numbers above 0" : "three numbers");
  }

  filter(key: string, standard: number): Filter {
    const isCode = (value: unknown): value is number => Number.isInteger(value) && (value as number) in FILTERS;
    return FILTERS[this.get(key, standard, isCode, "0 to 5 (Pillow's filters)")];
  }

  /** size: 224 (old files: the shortest edge where the class means one, else a square), { shortest_edge } or { height, width }. */
  size(key: string, standard: unknown): number | Size {
    this.#asked.add(key);
    const value = this.values[key] ?? standard;
    if (isEdge(value)) return isObject(standard) && "shortest_edge" in standard ? value : { height: value, width: value };
    if (isObject(value)) {
      const keys = Object.keys(value)
        .filter((name) => value[name] !== null)
        .sort()
        .join();
      if (keys === "shortest_edge" && isEdge(value.shortest_edge)) return value.shortest_edge;
      if (keys === "height,width" && isEdge(value.height) && isEdge(value.width)) return { height: value.height, width: value.width };
    }
    this.misfits.push(`${key}: ${JSON.stringify(value)}, expected a number, {"shortest_edge"} or {"height", "width"}, of 1 to ${MAX_EDGE}`);
    return 1;
  }

  /** crop_size: 224 or { height, width }. */
  crop(key: string, standard: unknown): Size {
    this.#asked.add(key);
    const value = this.values[key] ?? standard;
    if (isEdge(value)) return { height: value, width: value };
    if (isObject(value) && isEdge(value.height) && isEdge(value.width)) return { height: value.height, width: value.width };
    this.misfits.push(`${key}: ${JSON.stringify(value)}, expected a number or {"height", "width"}, of 1 to ${MAX_EDGE}`);
    return { height: 1, width: 1 };
  }

  /** Keys that nobody asked for are misfits, unless they are known not to matter; `harmless` names the family's own of that kind. */
  close(harmless: readonly (string | RegExp)[] = []): void {
    const matters = (key: string): boolean => !harmless.some((one) => (typeof one === "string" ? one === key : one.test(key)));
    for (const [key, value] of Object.entries(this.values)) {
      if (value === null || this.#asked.has(key) || KNOWN.includes(key) || HARMLESS.includes(key) || !matters(key)) continue; // null is "not given"
      if (Object.hasOwn(ONLY, key)) {
        if (value !== ONLY[key]) this.misfits.push(`${key}: ${JSON.stringify(value)} is not supported, only ${JSON.stringify(ONLY[key])}`);
        continue;
      }
      const meant = nearest(key, [...KNOWN, ...this.#asked]);
      this.misfits.push(`${key}: unknown${meant ? `; did you mean ${meant}?` : ", and it may change the numbers"}`);
    }
  }

  throwIfMisfit(): void {
    if (this.misfits.length > 0) throw new Error(`${this.path} cannot be followed:\n${this.misfits.map((line) => `  ${line}`).join("\n")}`);
  }
}
