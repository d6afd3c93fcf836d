/** Checks of what a caller of `dataset()` wrote: every misfit at once, each with the value that was probably meant. */
import { nearest } from "../files/nearest";
import type { Language } from "./emoji";
import { SPLITS, type Split } from "./kin";

/**
 * split: which part, or "all"; language of captions, tags and groups (default "en"); size of the pictures in pixels, 8 to 1024
 * (default 64); skinTones: also the emoji of each skin tone (default false); signal: stops the first drawing of the pictures.
 */
export type DatasetOptions = {
  split: Split | "all";
  language?: Language;
  size?: number;
  skinTones?: boolean;
  signal?: AbortSignal;
};

export const DATASETS = ["emoji", "emoji-noto"] as const;
export type DatasetName = (typeof DATASETS)[number];

const LANGUAGES = ["en", "zh"];
const KEYS = ["split", "language", "size", "skinTones", "signal"];

/** `"trian" is not a split; did you mean "train"? (train, validation, test, all)` */
function unknown(value: unknown, what: string, known: readonly string[]): string {
  const meant = nearest(String(value), known);
  const written = typeof value === "string" ? `"${value}"` : String(value);
  return `${written} is not ${what}${meant ? `; did you mean "${meant}"?` : ""} (${known.join(", ")})`;
}

/** Throws one error that names every misfit; gives the options with their defaults. */
export function checkOptions(name: string, options: DatasetOptions): Required<Omit<DatasetOptions, "signal">> {
  const { split, language = "en", size = 64, skinTones = false } = options ?? {};
  const splits = [...SPLITS, "all"];
  const misfits = [
    !(DATASETS as readonly string[]).includes(name) && unknown(name, "a data set of the workbench", DATASETS),
    ...Object.keys(options ?? {}).map((key) => !KEYS.includes(key) && unknown(key, "an option", KEYS)),
    split === undefined && `split is missing: write { split: "test" }, or one of ${splits.join(", ")}`,
    split !== undefined && !splits.includes(split) && unknown(split, "a split", splits),
    !LANGUAGES.includes(language) && unknown(language, "a language of the captions", LANGUAGES),
    !(Number.isInteger(size) && size >= 8 && size <= 1024) && `size is ${size}, expected whole pixels from 8 to 1024`,
    typeof skinTones !== "boolean" && `skinTones is ${JSON.stringify(skinTones)}, expected true or false`,
  ].filter(Boolean);
  if (misfits.length) throw new TypeError(`dataset(${JSON.stringify(name)}):\n  ${misfits.join("\n  ")}`);
  return { split, language, size, skinTones };
}
