/** Learns a WordPiece vocabulary in the manner of BERT from texts (byte-pair merges within words, as in the tokenizers library) and writes its files. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { breathe, interruptSignal } from "../engine/interrupt";
import { writeFileAtomic } from "../files/atomic";
import { learnMerges, type Word } from "./bpe";
import { specialToken } from "./clip";
import { bertJson } from "./pipelines";

/** Before the pieces, as in BERT's vocabularies. */
const FIRST = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const ROLES = { pad_token: "[PAD]", unk_token: "[UNK]", cls_token: "[CLS]", sep_token: "[SEP]", mask_token: "[MASK]" };

/** Lower-case words and single signs, without accents, as BERT's normaliser and pre-tokenizer cut them. */
const bertWords = (text: string): string[] =>
  text
    .normalize("NFD")
    .replace(/\p{Mn}/gu, "")
    .toLowerCase()
    .match(/[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu) ?? [];

export type TrainWordPieceOptions = {
  /** Tokens in all, specials included. */
  vocabSize: number;
  /** The folder that receives the files; made if missing. */
  folder: string;
  /** Special tokens behind the pieces, e.g. "[DEC]". */
  added?: string[];
  /** A pair must occur this often to become a token. */
  minCount?: number;
  /** Tokens of the longest text the model will take, specials included. */
  modelMaxLength?: number;
  signal?: AbortSignal;
};

/**
 * Writes `vocab.txt`, `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, which `loadTokenizer()` and transformers' BertTokenizer open.
 * Ids: BERT's five specials, the letters at a word's beginning and within (`##`), one token a merge, `added`. Deterministic.
 *
 * @returns the size of the vocabulary, smaller than asked when the texts hold too few pairs
 * @throws RangeError when letters and specials alone are more than `vocabSize`
 */
export async function trainWordPiece(
  texts: Iterable<string>,
  { vocabSize, folder, added = [], minCount = 2, modelMaxLength = 512, signal = interruptSignal() }: TrainWordPieceOptions,
): Promise<{ vocabSize: number }> {
  const { words, names } = await countWords(texts, signal);
  const least = FIRST.length + names.length + added.length;
  if (!Number.isSafeInteger(vocabSize) || vocabSize < least)
    throw new RangeError(`trainWordPiece: vocabSize is ${vocabSize}; letters and specials alone need ${least}`);
  await learnMerges(words, names, { size: vocabSize - FIRST.length - added.length, minCount, signal });
  const pieces = [...new Set([...FIRST, ...names.map(spelling), ...added])];
  const vocab = new Map(pieces.map((piece, id) => [piece, id]));
  const specials = [...FIRST, ...added].map((token) => specialToken(vocab.get(token) as number, token, false));
  const json = (value: unknown) => `${JSON.stringify(value, null, 1)}\n`;
  const parts = { vocab, unk: "[UNK]", sep: "[SEP]", cls: "[CLS]", lower: true, stripAccents: null, chinese: true, added: specials };
  const files = {
    "vocab.txt": `${pieces.join("\n")}\n`,
    "tokenizer.json": json(bertJson(parts)),
    "tokenizer_config.json": json({
      added_tokens_decoder: Object.fromEntries(specials.map(({ id, ...rest }) => [id, rest])),
      clean_up_tokenization_spaces: true,
      do_basic_tokenize: true,
      do_lower_case: true,
      ...ROLES,
      model_max_length: modelMaxLength,
      strip_accents: null,
      tokenize_chinese_chars: true,
      tokenizer_class: "BertTokenizer",
    }),
    "special_tokens_map.json": json(ROLES),
  };
  await mkdir(folder, { recursive: true });
  for (const [name, content] of Object.entries(files)) await writeFileAtomic(join(folder, name), content);
  return { vocabSize: vocab.size };
}

const WITHIN = "##";

/** A merged name without the marks between its letters: "c##a##t" -> "cat", "##a##t" -> "##at". */
const spelling = (name: string): string => (name.startsWith(WITHIN) ? WITHIN : "") + name.replaceAll(WITHIN, "");

/** Counted words as symbols, and the symbols' names: every letter at a word's beginning and within, in the order of their codes. */
async function countWords(texts: Iterable<string>, signal: AbortSignal): Promise<{ words: Word[]; names: string[] }> {
  const counts = new Map<string, number>();
  let seen = 0;
  for (const text of texts) {
    for (const word of bertWords(text)) counts.set(word, (counts.get(word) ?? 0) + 1);
    if (++seen % 2000 === 0) await breathe();
    signal.throwIfAborted();
  }
  const symbols = (word: string) => [...word].map((letter, i) => (i === 0 ? letter : WITHIN + letter));
  const names = [...new Set([...counts.keys()].flatMap(symbols))].sort();
  const place = new Map(names.map((name, i) => [name, i]));
  const words = Array.from(counts, ([word, count]) => ({ symbols: symbols(word).map((name) => place.get(name) as number), count }));
  words.sort((a, b) => compare(a.symbols, b.symbols)); // the result does not depend on the order of the texts
  return { words, names };
}

function compare(a: number[], b: number[]): number {
  const i = a.findIndex((x, j) => x !== b[j]);
  return i < 0 ? a.length - b.length : a[i] - (b[i] ?? -1);
}
