/** Learns a byte-level vocabulary in the manner of GPT-2 and Qwen2 from texts, with special tokens of its own, and writes it as a tokenizer's files. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { interruptSignal } from "../engine/interrupt";
import { writeFileAtomic } from "../files/atomic";
import { countWords, learnMerges } from "./bpe";
import { BYTE_ALPHABET, specialToken, wellFormed } from "./clip";
import { qwen2Json } from "./pipelines";

/** Qwen2's words, as JavaScript's regular expressions write them. */
const WORDS =
  /'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/gu;

const qwen2Words = (text: string): string[] => wellFormed(text).normalize("NFC").match(WORDS) ?? [];

export type TrainByteBpeOptions = {
  /** Tokens in all, specials included. */
  vocabSize: number;
  /** The folder that receives the files; made if missing. */
  folder: string;
  /** Special tokens; their ids follow those of the merges. */
  special: string[];
  /** Roles of special tokens and whatever else tokenizer_config.json shall say, e.g. { eos_token: "<|end|>" }. */
  settings: { [key: string]: unknown };
  /** A pair must occur this often to become a token. */
  minCount?: number;
  signal?: AbortSignal;
};

/**
 * Writes `vocab.json`, `merges.txt`, `tokenizer.json` and `tokenizer_config.json`, which `loadTokenizer()` and transformers' Qwen2Tokenizer open.
 * Ids: 256 bytes, one token a merge, the specials. Deterministic.
 *
 * @returns the id of each special token, and the size of the vocabulary, smaller than asked when the texts hold too few pairs
 * @throws RangeError when bytes and specials alone are more than `vocabSize`
 */
export async function trainByteBpe(
  texts: Iterable<string>,
  { vocabSize, folder, special, settings, minCount = 2, signal = interruptSignal() }: TrainByteBpeOptions,
): Promise<{ vocabSize: number; idOf: { [token: string]: number } }> {
  const least = BYTE_ALPHABET.length + special.length;
  if (!Number.isSafeInteger(vocabSize) || vocabSize < least)
    throw new RangeError(`trainByteBpe: vocabSize is ${vocabSize}; the bytes and the specials alone need ${least}`);
  const names = [...BYTE_ALPHABET];
  const merges = await learnMerges(await countWords(texts, qwen2Words, signal), names, {
    size: vocabSize - special.length,
    minCount,
    signal,
  });
  const vocab = new Map(names.map((token, id) => [token, id]));
  const added = special.map((token, i) => specialToken(vocab.size + i, token, false));
  const json = (value: unknown) => `${JSON.stringify(value, null, 1)}\n`;
  await mkdir(folder, { recursive: true });
  const files = {
    "vocab.json": `${JSON.stringify(Object.fromEntries(vocab))}\n`,
    "merges.txt": `#version: 0.2\n${merges.map((pair) => `${pair.join(" ")}\n`).join("")}`,
    "tokenizer.json": json(qwen2Json({ vocab, merges, added })),
    "tokenizer_config.json": json({
      added_tokens_decoder: Object.fromEntries(added.map(({ id, ...rest }) => [id, rest])),
      add_prefix_space: false,
      additional_special_tokens: special,
      bos_token: null,
      clean_up_tokenization_spaces: false,
      errors: "replace",
      tokenizer_class: "Qwen2Tokenizer",
      unk_token: null,
      ...settings,
    }),
  };
  for (const [name, content] of Object.entries(files)) await writeFileAtomic(join(folder, name), content);
  return { vocabSize: vocab.size + added.length, idOf: Object.fromEntries(added.map(({ content, id }) => [content, id])) };
}
