/** Text to token ids and back, exactly as the tokenizer that a checkpoint was trained with. */
import type { Literal, Span } from "./added";
import { fillFrame, type Frame, readFrame, type Segments } from "./around";
import { type Batch, type BatchOptions, makeBatch } from "./batch";
import { strip } from "./blanks";
import { BYTE_CHARACTERS, END_OF_WORD, wellFormed } from "./clip";
import { cleanUp, readDecoder } from "./decoder";
import { type Encoder, openPipeline } from "./pipeline";
import { siglipPipeline } from "./siglip";
import { readTokenizerFiles, type TokenizerFiles } from "./tokenizer-files";
import { byWords, isClipPipeline } from "./words";

export type { Batch, BatchOptions } from "./batch";

export type EncodeOptions = {
  /** Whether the tokens that the checkpoint puts around a text are added; true by default. */
  addSpecialTokens?: boolean;
  /** A second text, framed as the checkpoint does. */
  pair?: string;
  /**
   * What special tokens are that stand in the text itself: `tokens` (as the reference reads them), or `text`, letters like any others. A text
   * that somebody typed should be read as `text`: then `<|im_end|>` in it ends no turn, and `<image>` stands for no picture.
   */
  specials?: "tokens" | "text";
  /** The same for some ranges of the text only: what a person typed inside a rendered chat (`Rendered.typed`). */
  literal?: readonly Span[];
};

export type Tokenizer = {
  /** Tokens in all, added ones included: the rows an embedding table must at least have. */
  vocabSize: number;
  /** Tokens of the longest text, specials included; Infinity where the checkpoint does not say. */
  modelMaxLength: number;
  /** Ids of the special tokens that the checkpoint has. */
  special: { bos?: number; eos?: number; pad?: number; unk?: number; sep?: number; cls?: number; mask?: number };
  /** Whether the model takes a mask of the padding; SigLIP attends to it instead. */
  usesMask: boolean;
  /** The side that batch() fills, and the side that it cuts. */
  paddingSide: "left" | "right";
  truncationSide: "left" | "right";
  /** Ids of a text. */
  encode(text: string, options?: EncodeOptions): number[];
  /** Ids of one text or two, and the segment of each (BERT's `token_type_ids`). */
  segments(text: string, pair?: string): Segments;
  /** The text of ids. */
  decode(ids: ArrayLike<number>, options?: { skipSpecialTokens?: boolean }): string;
  /** The id of a token as the vocabulary spells it (`<image>`, `▁cat`), undefined where it has none. */
  idOf(token: string): number | undefined;
  /** The tokens that stand outside the vocabulary's own cutting, by id; `special` ones are left out of decoded texts. */
  added: ReadonlyMap<number, { content: string; special: boolean }>;
  /** Each id as a readable piece: bytes as characters where they make any, `</w>` where a word ends. */
  tokens(ids: ArrayLike<number>): string[];
  /** Many texts, and masks that are 1 on text and 0 on padding. */
  batch(texts: string[], options?: BatchOptions): Batch;
};

/**
 * The tokenizer of a checkpoint folder: `tokenizer.json`, or the older files of its class (`vocab.json` and `merges.txt`, `vocab.txt`,
 * `tokenizer.model`, `spiece.model`), with `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` where they are.
 *
 * @throws Error naming the file and the entry that is wrong.
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  return makeTokenizer(readTokenizerFiles(folder));
}

function makeTokenizer(files: TokenizerFiles): Tokenizer {
  const { json, settings } = files;
  const { vocab, ids } = vocabularyOf(json);
  const idOf = (token?: string) => (token === undefined ? undefined : ids.get(token));
  const special = Object.fromEntries(Object.entries(settings.special).map(([role, token]) => [role, idOf(token)]));
  const skipped = new Set(json.added_tokens.flatMap((token) => (token.special ? [token.id] : [])));
  const own = files.siglip && siglipPipeline(files.siglip.model, json.added_tokens, files.siglip.lower);
  const plain = own ? checked(own.encode) : checked(makeEncoder(files));
  const frame = own ? siglipFrame(special.eos as number) : frameOf(files, idOf);
  const close = own ? withoutEnd(special.eos as number) : (row: number[]) => row;

  const segments = (text: string, pair?: string, literal: Literal = false): Segments => {
    const [first, second] = [close(plain(text, literal)), pair === undefined ? undefined : close(plain(pair, literal === true))];
    return fillFrame(second ? frame.pair : frame.single, first, second);
  };
  const encode = (text: string, { addSpecialTokens = true, pair, specials = "tokens", literal }: EncodeOptions = {}): number[] => {
    const typed = specials === "text" || (literal ?? false);
    if (addSpecialTokens) return segments(text, pair, typed).ids;
    return pair === undefined ? plain(text, typed) : [...plain(text, typed), ...plain(pair, typed === true)];
  };
  const valid = (list: ArrayLike<number>): number[] => {
    const row = Array.from(list);
    const wrong = row.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < vocab.length));
    if (wrong !== -1) throw new RangeError(`decode: ids[${wrong}] is ${row[wrong]}, expected a whole number of 0 to ${vocab.length - 1}`);
    return row;
  };
  const join = own ? own.decode : makeDecoder(files, vocab);
  const decode = (list: ArrayLike<number>, { skipSpecialTokens = true }: { skipSpecialTokens?: boolean } = {}): string => {
    const kept = valid(list).filter((id) => !skipSpecialTokens || !skipped.has(id));
    return kept.length === 0 ? "" : join(kept);
  };
  const added = new Map(json.added_tokens.map(({ id, content, special: isSpecial = false }) => [id, { content, special: isSpecial }]));
  const isByteLevel = mentions(json.decoder, "ByteLevel");
  const tokens = (list: ArrayLike<number>) => valid(list).map((id) => (isByteLevel && !added.has(id) ? readable(vocab[id]) : vocab[id]));
  const { modelMaxLength, paddingSide, truncationSide, usesMask } = settings;
  const closed: Encoder = (text, literal) => close(plain(text, literal));
  const batch = makeBatch(closed, { frame, modelMaxLength, paddingSide, truncationSide, pad: special.pad });
  return {
    ...{ vocabSize: vocab.length, modelMaxLength, special, usesMask, paddingSide, truncationSide },
    ...{ encode, segments: (text, pair) => segments(text, pair), decode, idOf, added, tokens, batch },
  };
}

/** All tokens by id and their ids; added tokens overrule the model's vocabulary. */
function vocabularyOf(json: TokenizerFiles["json"]): { vocab: string[]; ids: Map<string, number> } {
  const own = json.model.vocab as Record<string, number> | [string, number][];
  const ids = new Map(Array.isArray(own) ? own.map(([piece], id): [string, number] => [piece, id]) : Object.entries(own));
  for (const { id, content } of json.added_tokens) ids.set(content, id);
  const vocab: string[] = [];
  for (const [token, id] of ids) vocab[id] = token;
  return { vocab, ids };
}

/** The encoder of a pipeline; CLIP's words are remembered. */
function makeEncoder({ path, json }: TokenizerFiles): Encoder {
  const encode = openPipeline(path, json);
  const isLower = mentions(json.normalizer, "Lowercase") || mentions(json.normalizer, "BertNormalizer");
  // the library lower-cases whole texts, the reference one code point at a time: see lowerCase()
  const whole: Encoder = (text, literal) => encode(isLower ? text.replaceAll("Σ", "σ") : text, literal);
  const words = isClipPipeline(json) ? byWords((text) => whole(text, false)) : undefined;
  return (text, literal) => (words && literal === false ? words(text) : whole(text, literal));
}

/** Refuses what is no text, and replaces lone surrogates. */
const checked =
  (encode: Encoder): Encoder =>
  (text, literal) => {
    if (typeof text !== "string") throw new TypeError(`tokenizer: expected a text, got ${text === null ? "null" : typeof text}`);
    return encode(wellFormed(text), literal);
  };

function makeDecoder({ path, json, settings }: TokenizerFiles, vocab: string[]): (ids: number[]) => string {
  const suffix = json.model.end_of_word_suffix;
  const endsWords = mentions(json.decoder, "ByteLevel") && suffix === END_OF_WORD;
  try {
    const decoder = readDecoder(json.decoder);
    return (ids) => {
      const text = decoder(ids.map((id) => vocab[id]));
      if (endsWords) return strip(text.replaceAll(END_OF_WORD, " "));
      return settings.isCleaned ? cleanUp(text) : text;
    };
  } catch (error) {
    throw new Error(`${path} is not a usable tokenizer: ${(error as Error).message}`, { cause: error });
  }
}

function frameOf({ path, json }: TokenizerFiles, idOf: (token?: string) => number | undefined): Frame {
  try {
    return readFrame(json.post_processor, idOf);
  } catch (error) {
    throw new Error(`${path} is not a usable tokenizer: ${(error as Error).message}`, { cause: error });
  }
}

/** SigLIP: `</s>` ends each text, once. */
const siglipFrame = (eos: number): Frame => ({
  single: [
    { of: "A", type: 0 },
    { ids: [eos], type: 0 },
  ],
  pair: [
    { of: "A", type: 0 },
    { ids: [eos], type: 0 },
    { of: "B", type: 0 },
    { ids: [eos], type: 0 },
  ],
});
const withoutEnd =
  (eos: number) =>
  (ids: number[]): number[] =>
    ids.at(-1) === eos ? ids.slice(0, -1) : ids;

/** Whether a part of a pipeline, or of the sequence that it is, has this type. */
const mentions = (part: unknown, type: string): boolean => JSON.stringify(part ?? null).includes(`"type":"${type}"`);

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
