/** What a caller may ask of an answer: LMDeploy's names and defaults, with their limits. */
import { nearest } from "../files/nearest";

export type GenerationOptions = {
  /** Tokens of an answer at most; fewer where the model's context ends before. */
  maxNewTokens?: number;
  /** Tokens before which no end token is chosen, and no stop word looked for. */
  minNewTokens?: number;
  /** Draws each token; false takes the most probable one, and `temperature`, `topK`, `topP`, `minP` do nothing. */
  doSample?: boolean;
  /** Scores are divided by it. 0 is the same as `doSample: false`. */
  temperature?: number;
  /** Draws among so many of the most probable tokens; 0: all. */
  topK?: number;
  /** Draws among the fewest tokens whose probabilities add up to this (Holtzman et al. 2020). */
  topP?: number;
  /** Draws among tokens that are at least so probable as this share of the most probable one (Nguyen et al. 2024). */
  minP?: number;
  /** Scores of tokens that are there already are divided by it where positive, multiplied where negative (Keskar et al. 2019). */
  repetitionPenalty?: number;
  /** Texts that end the answer; they are not part of it. */
  stopWords?: string[];
  /** Texts that are never said, at the beginning of a word or inside one. */
  badWords?: string[];
  /** Ids that end the answer, besides the checkpoint's. */
  stopTokenIds?: number[];
  badTokenIds?: number[];
  /** The checkpoint's end tokens end nothing. */
  ignoreEos?: boolean;
  /** Whether `text` leaves special tokens out. */
  skipSpecialTokens?: boolean;
  /** How many of the most probable tokens are told with each token. */
  logprobs?: number;
  /** Of the draws: the same seed, the same answer (src/data/random.ts). Default: another one each time; the result names it. */
  seed?: number;
  /** Beam search with so many beams; 1: none. */
  numBeams?: number;
  /** A beam's score is its log-probability divided by its length to this power. */
  lengthPenalty?: number;
  /** true: ends when `numBeams` answers are there; false: when no better one is likely; "never": when none is possible. */
  earlyStopping?: boolean | "never";
};

export const DEFAULTS = {
  maxNewTokens: 512,
  minNewTokens: 0,
  doSample: false,
  temperature: 0.8,
  topK: 50,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  stopWords: [] as string[],
  badWords: [] as string[],
  stopTokenIds: [] as number[],
  badTokenIds: [] as number[],
  ignoreEos: false,
  skipSpecialTokens: true,
  logprobs: 0,
  seed: undefined as number | undefined,
  numBeams: 1,
  lengthPenalty: 1,
  earlyStopping: false as boolean | "never",
};
/** Every option with its value. */
export type Settings = Omit<typeof DEFAULTS, "seed"> & { seed: number };

/** Limits that keep one request from taking the machine. */
export const LIMITS = {
  maxNewTokens: 131_072,
  topK: 1_000_000,
  stopWords: 64,
  badWords: 256,
  tokenIds: 4096,
  wordLength: 256,
  logprobs: 100,
  numBeams: 16,
};

/** What is wrong with a value, or undefined. */
type Check = (value: unknown) => string | undefined;

const whole =
  (from: number, to: number): Check =>
  (value) =>
    Number.isInteger(value) && (value as number) >= from && (value as number) <= to ? undefined : `a whole number from ${from} to ${to}`;
const real =
  (from: number, to: number, above = false): Check =>
  (value) =>
    typeof value === "number" && (above ? value > from : value >= from) && value <= to
      ? undefined
      : `a number ${above ? `above ${from}, to` : `from ${from} to`} ${to}`;
const flag: Check = (value) => (typeof value === "boolean" ? undefined : "true or false");
const list =
  (most: number, what: string, is: (item: unknown) => boolean): Check =>
  (value) =>
    Array.isArray(value) && value.length <= most && value.every(is) ? undefined : `a list of at most ${most} ${what}`;
const isWord = (item: unknown): boolean => typeof item === "string" && item.length > 0 && item.length <= LIMITS.wordLength;
const words = (most: number): Check => list(most, `texts of 1 to ${LIMITS.wordLength} characters`, isWord);
const ids = (vocabSize: number): Check => {
  const isId = (item: unknown) => Number.isInteger(item) && (item as number) >= 0 && (item as number) < vocabSize;
  return list(LIMITS.tokenIds, `ids from 0 to ${vocabSize - 1}`, isId);
};

const checksOf = (vocabSize: number): { [key in keyof Required<GenerationOptions>]: Check } => ({
  maxNewTokens: whole(1, LIMITS.maxNewTokens),
  minNewTokens: whole(0, LIMITS.maxNewTokens),
  doSample: flag,
  temperature: real(0, 2),
  topK: whole(0, LIMITS.topK),
  topP: real(0, 1, true),
  minP: real(0, 1),
  repetitionPenalty: real(0, 100, true),
  stopWords: words(LIMITS.stopWords),
  badWords: words(LIMITS.badWords),
  stopTokenIds: ids(vocabSize),
  badTokenIds: ids(vocabSize),
  ignoreEos: flag,
  skipSpecialTokens: flag,
  logprobs: whole(0, LIMITS.logprobs),
  seed: whole(0, Number.MAX_SAFE_INTEGER),
  numBeams: whole(1, LIMITS.numBeams),
  lengthPenalty: real(-10, 10),
  earlyStopping: (value) => (typeof value === "boolean" || value === "never" ? undefined : 'true, false or "never"'),
});

const shown = (value: unknown): string => {
  if (Array.isArray(value)) return value.length > 8 ? `a list of ${value.length}` : JSON.stringify(value).slice(0, 80);
  return typeof value === "string" ? JSON.stringify(value).slice(0, 80) : String(value);
};

/**
 * The options with every value present.
 *
 * @throws RangeError naming every option that is unknown or outside its limits, and the limits
 */
export function checkOptions(options: GenerationOptions, vocabSize: number): Settings {
  const checks = checksOf(vocabSize);
  const misfits: string[] = [];
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined) continue;
    if (!Object.hasOwn(checks, key)) {
      const near = nearest(key, Object.keys(checks));
      misfits.push(`${key} is no option${near ? `; did you mean ${near}?` : ""}`);
      continue;
    }
    const expected = checks[key as keyof GenerationOptions](value);
    if (expected) misfits.push(`${key} is ${shown(value)}, expected ${expected}`);
  }
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  const settings = { ...DEFAULTS, ...given } as Settings;
  if (misfits.length === 0 && settings.minNewTokens > settings.maxNewTokens)
    misfits.push(`minNewTokens is ${settings.minNewTokens}, more than maxNewTokens, ${settings.maxNewTokens}`);
  if (settings.temperature === 0) settings.doSample = false;
  if (misfits.length === 0 && settings.numBeams > 1 && settings.doSample)
    misfits.push("numBeams goes with doSample: false; a beam search draws nothing");
  if (misfits.length) throw new RangeError(`generate: ${misfits.join("; ")}`);
  settings.seed ??= Math.floor(Math.random() * 2 ** 32);
  return settings;
}
