/** Text to token ids and back, exactly as the tokenizer that a checkpoint was trained with. */
import { runInNewContext } from "node:vm";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { BYTE_CHARACTERS, END_OF_WORD, wellFormed } from "./clip";
import { byWords, isClipPipeline } from "./words";
import { readTokenizerFiles, type TokenizerFiles } from "./tokenizer-files";

/** How a batch is brought to one length. */
export type BatchOptions = {
  /** Tokens a row may have, specials included; by default what the model takes. */
  maxLength?: number;
  /** To the longest text, to maxLength, or not at all. */
  padding?: "longest" | "max_length" | false;
  /** Whether longer texts are cut (the specials stay); otherwise they are an error. */
  truncation?: boolean;
};

export type Tokenizer = {
  /** Tokens in all, added ones included: the rows an embedding table must at least have. */
  vocabSize: number;
  /** Tokens of the longest text, specials included; Infinity where the checkpoint does not say. */
  modelMaxLength: number;
  /** Ids of the special tokens that the checkpoint has. */
  special: { bos?: number; eos?: number; pad?: number; unk?: number };
  /** Ids of a text. */
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];
  /** The text of ids. */
  decode(ids: ArrayLike<number>, options?: { skipSpecialTokens?: boolean }): string;
  /** Each id as a readable piece: bytes as characters where they make any, `</w>` where a word ends. */
  tokens(ids: ArrayLike<number>): string[];
  /** Many texts, and masks that are 1 on text and 0 on padding. */
  batch(texts: string[], options?: BatchOptions): { ids: number[][]; mask: number[][] };
};

/** What is used of the library's tokenizer; the lower half is not in its public types. */
type Opened = Pick<Library, "encode" | "decode" | "token_to_id"> & {
  model: { vocab: string[]; end_of_word_suffix?: string };
  special_tokens: string[];
};

/**
 * The tokenizer of a checkpoint folder: `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt`, with
 * `tokenizer_config.json` and `special_tokens_map.json` where they are.
 *
 * @throws Error naming the file and the entry that is wrong.
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  return makeTokenizer(readTokenizerFiles(folder));
}

/** Texts on which a pattern with exponential search would never end. */
const PROBES = ["a", " ", "1", "!", "\n", "字", "ab ", "'s"].map((piece) => `${piece.repeat(400)}\u0001`);
const PROBE_MS = 2000;

function openLibrary({ path, json, settings }: TokenizerFiles): Opened {
  const config = { eos_token: settings.special.eos, clean_up_tokenization_spaces: false };
  try {
    const library = new Library(json, config) as unknown as Opened;
    // a time limit on regular expressions exists only inside node:vm; what is called there is our own function
    runInNewContext("probe()", { probe: () => PROBES.forEach((text) => library.encode(text)) }, { timeout: PROBE_MS });
    return library;
  } catch (error) {
    const isSlow = (error as { code?: string }).code === "ERR_SCRIPT_EXECUTION_TIMEOUT";
    const text = isSlow ? "a pattern in it takes exponential time on repeated characters" : (error as Error).message;
    throw new Error(`${path} is not a usable tokenizer: ${text}`, { cause: error });
  }
}

function makeTokenizer(files: TokenizerFiles): Tokenizer {
  const library = openLibrary(files);
  const { json, settings } = files;
  const vocab = library.model.vocab;
  const idOf = (token?: string) => (token === undefined ? undefined : library.token_to_id(token));
  const special = Object.fromEntries(Object.entries(settings.special).map(([role, token]) => [role, idOf(token)]));
  const skipped = new Set(library.special_tokens.map((token) => idOf(token)));
  const isByteLevel = mentions(json.decoder, "ByteLevel");
  const endsWords = isByteLevel && library.model.end_of_word_suffix === END_OF_WORD;
  const isLower = mentions(json.normalizer, "Lowercase") || mentions(json.normalizer, "BertNormalizer");

  // the library lower-cases whole texts, the reference one code point at a time: see lowerCase()
  const prepare = (text: string) => (isLower ? wellFormed(text).replaceAll("Σ", "σ") : wellFormed(text));
  const whole = (text: string): number[] => library.encode(prepare(text), { add_special_tokens: false }).ids;
  const plain = isClipPipeline(json) ? byWords(whole) : whole;
  const around = specialsAround(library);
  const encode = (text: string, { addSpecialTokens = true }: { addSpecialTokens?: boolean } = {}): number[] => {
    const ids = plain(checkText(text));
    return addSpecialTokens ? around.before.concat(ids, around.after) : ids;
  };
  const checked = (ids: ArrayLike<number>): number[] => {
    const list = Array.from(ids);
    const wrong = list.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < vocab.length));
    if (wrong !== -1) throw new RangeError(`decode: ids[${wrong}] is ${list[wrong]}, expected a whole number of 0 to ${vocab.length - 1}`);
    return list;
  };
  const decode = (ids: ArrayLike<number>, { skipSpecialTokens = true }: { skipSpecialTokens?: boolean } = {}): string => {
    const kept = checked(ids).filter((id) => !skipSpecialTokens || !skipped.has(id));
    if (kept.length === 0) return "";
    const text = library.decode(kept, { skip_special_tokens: false, clean_up_tokenization_spaces: false });
    return endsWords ? strip(text) : text;
  };
  const added = new Set(json.added_tokens.map(({ content }) => content));
  const tokens = (ids: ArrayLike<number>): string[] =>
    checked(ids).map((id) => (isByteLevel && !added.has(vocab[id]) ? readable(vocab[id]) : vocab[id]));
  const batch = makeBatch(plain, around, { ...settings, pad: special.pad });
  return { vocabSize: vocab.length, modelMaxLength: settings.modelMaxLength, special, encode, decode, tokens, batch };
}

function checkText(text: unknown): string {
  if (typeof text !== "string") throw new TypeError(`tokenizer: expected a text, got ${text === null ? "null" : typeof text}`);
  return text;
}

/** Whether a part of a pipeline, or of the sequence that it is, has this type. */
const mentions = (part: unknown, type: string): boolean => JSON.stringify(part ?? null).includes(`"type":"${type}"`);

/** Python's str.strip(), which knows other blanks than trim(). */
const BLANKS = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const LEADING = new RegExp(`^${BLANKS}+`);
const strip = (text: string): string => {
  const rest = text.replace(LEADING, "");
  let end = rest.length;
  while (end > 0 && LEADING.test(rest[end - 1])) end--;
  return rest.slice(0, end);
};

const BYTE_OF = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));

/** A byte-level piece for a person: its text, or its bytes where they are only part of a character. */
function readable(token: string): string {
  const end = token.endsWith(END_OF_WORD) && token !== END_OF_WORD ? END_OF_WORD : "";
  const characters = Array.from(end ? token.slice(0, -end.length) : token);
  const bytes = characters.map((character) => BYTE_OF.get(character));
  if (bytes.includes(undefined)) return token;
  const buffer = Buffer.from(bytes as number[]);
  const text = buffer.toString("utf8");
  return (text.includes("\uFFFD") ? `<${buffer.toString("hex").replace(/(..)(?=.)/g, "$1 ")}>` : text) + end;
}

/** The special ids that stand before and after every text. */
type Around = { before: number[]; after: number[] };

function specialsAround(library: Opened): Around {
  const plain: number[] = library.encode("a", { add_special_tokens: false }).ids;
  const full: number[] = library.encode("a").ids;
  const start = Array.from(full.keys()).findIndex((i) => plain.every((id, k) => full[i + k] === id));
  return { before: full.slice(0, start), after: full.slice(start + plain.length) };
}

function checkLimits(maxLength: number, around: number, isNeeded: boolean): void {
  const unlimited = maxLength === Number.POSITIVE_INFINITY;
  if (!unlimited && (!Number.isInteger(maxLength) || maxLength <= around))
    throw new RangeError(`batch: maxLength ${maxLength}, expected a whole number above ${around}, the special tokens around a text`);
  if (unlimited && isNeeded) throw new RangeError("batch: this checkpoint does not say how long a text may be; give maxLength");
}

/** Truncation that keeps the specials, padding and masks, on the sides that the checkpoint says. */
function makeBatch(
  encode: (text: string) => number[],
  { before, after }: Around,
  settings: TokenizerFiles["settings"] & { pad?: number },
): Tokenizer["batch"] {
  const { modelMaxLength, paddingSide, truncationSide, pad } = settings;
  const around = before.length + after.length;
  return (texts, { maxLength = modelMaxLength, padding = "longest", truncation = false } = {}) => {
    checkLimits(maxLength, around, padding === "max_length" || truncation);
    const rows = texts.map((text, i) => {
      const plain = encode(checkText(text));
      const room = maxLength - around;
      if (plain.length > room && !truncation)
        throw new RangeError(
          `batch: texts[${i}] (${JSON.stringify(text.slice(0, 40))}…) has ${plain.length + around} tokens, ${maxLength} fit; ` +
            "shorten it, or cut it with { truncation: true }",
        );
      const kept = plain.length <= room ? plain : truncationSide === "right" ? plain.slice(0, room) : plain.slice(-room);
      return [...before, ...kept, ...after];
    });
    const longest = rows.reduce((most, row) => Math.max(most, row.length), 0);
    const width = padding === "max_length" ? maxLength : padding === "longest" ? longest : 0;
    const short = rows.findIndex((row) => row.length < width);
    if (short !== -1 && pad === undefined)
      throw new RangeError("batch: texts of different lengths need padding, but this checkpoint has no pad_token");
    const fill = (row: number[], value: number): number[] => {
      const extra: number[] = new Array(Math.max(0, width - row.length)).fill(value);
      return paddingSide === "right" ? [...row, ...extra] : [...extra, ...row];
    };
    return {
      ids: rows.map((row) => fill(row, pad ?? 0)),
      mask: rows.map((row) =>
        fill(
          row.map(() => 1),
          0,
        ),
      ),
    };
  };
}
