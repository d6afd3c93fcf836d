/** Learns a CLIP-style vocabulary from texts (byte pairs, Sennrich et al. 2016) and writes it as CLIP's files. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { breathe, interruptSignal } from "../engine/interrupt";
import { writeFileAtomic } from "../files/atomic";
import {
  BYTE_ALPHABET,
  type Bpe,
  byteCharacters,
  CLIP_BOS,
  CLIP_EOS,
  clipTokenizerJson,
  clipWords,
  END_OF_WORD,
  specialToken,
} from "./clip";

/** The 256 bytes inside a word, the 256 that end one, and the two specials: no vocabulary is smaller. */
const SMALLEST = 2 * BYTE_ALPHABET.length + 2;

/** A word as symbol numbers, and how often the texts hold it. */
export type Word = { symbols: number[]; count: number };

/** How often the texts hold each word, words as symbol numbers: each byte as its place in the alphabet. */
export async function countWords(
  texts: Iterable<string>,
  wordsOf: (text: string) => Iterable<string>,
  signal: AbortSignal,
): Promise<Word[]> {
  const counts = new Map<string, number>();
  let seen = 0;
  for (const text of texts) {
    for (const word of wordsOf(text)) counts.set(word, (counts.get(word) ?? 0) + 1);
    if (++seen % 2000 === 0) await breathe();
    signal.throwIfAborted();
  }
  const place = new Map(BYTE_ALPHABET.map((character, i) => [character, i]));
  return Array.from(counts, ([word, count]) => ({
    symbols: byteCharacters(word).map((character) => place.get(character) as number),
    count,
  }));
}

/** All neighbouring pairs, how often each occurs, and in which words (a word stays listed when its pair has gone). */
class PairTable {
  readonly left: number[] = [];
  readonly right: number[] = [];
  readonly counts: number[] = [];
  readonly words: Set<number>[] = [];
  private readonly places = new Map<number, number>();

  add(left: number, right: number, count: number, word: number): void {
    const key = left * 2 ** 26 + right;
    let place = this.places.get(key);
    if (place === undefined) {
      place = this.counts.push(0) - 1;
      this.places.set(key, place);
      this.left.push(left);
      this.right.push(right);
      this.words.push(new Set());
    }
    this.counts[place] += count;
    if (count > 0) this.words[place].add(word);
  }

  /** The most frequent pair; among equals the one whose symbols are oldest, so that the order of texts does not matter. */
  best(): number {
    const { counts, left, right } = this;
    let best = 0;
    for (let i = 1; i < counts.length; i++) {
      if (counts[i] < counts[best]) continue;
      if (counts[i] > counts[best] || left[i] < left[best] || (left[i] === left[best] && right[i] < right[best])) best = i;
    }
    return best;
  }
}

/** Replaces each `left, right` of a word by `merged`. */
function mergePair(symbols: number[], left: number, right: number, merged: number): number[] {
  const out: number[] = [];
  for (let i = 0; i < symbols.length; i++) {
    if (symbols[i] === left && symbols[i + 1] === right) {
      out.push(merged);
      i++;
    } else out.push(symbols[i]);
  }
  return out;
}

/**
 * Learns the merges of a vocabulary of `vocabSize` tokens (fewer when no pair occurs `minCount` times any more).
 * Ids: 256 bytes, 256 bytes that end a word, one token a merge, `<|startoftext|>`, `<|endoftext|>`, as in the
 * published CLIP vocabularies. The result depends only on the set of texts, not on their order.
 */
export async function learnBpe(
  texts: Iterable<string>,
  { vocabSize, minCount = 2, signal = interruptSignal() }: { vocabSize: number; minCount?: number; signal?: AbortSignal },
): Promise<Bpe> {
  if (!Number.isSafeInteger(vocabSize) || vocabSize < SMALLEST)
    throw new RangeError(`learnBpe: vocabSize is ${vocabSize}; the bytes and the specials alone need ${SMALLEST}`);
  if (!(minCount >= 1)) throw new RangeError(`learnBpe: minCount is ${minCount}, expected 1 or more`);
  const words = await countWords(texts, clipWords, signal);
  for (const { symbols } of words) symbols[symbols.length - 1] += BYTE_ALPHABET.length; // the last byte of a word is a symbol of its own
  const names = [...BYTE_ALPHABET, ...BYTE_ALPHABET.map((character) => character + END_OF_WORD)];
  const merges = await learnMerges(words, names, { size: vocabSize - 2, minCount, signal });
  return { vocab: new Map([...names, CLIP_BOS, CLIP_EOS].map((token, id) => [token, id])), merges };
}

/** Joins the most frequent pair again and again until there are `size` names, which are appended; changes the words. */
export async function learnMerges(
  words: Word[],
  names: string[],
  { size, minCount, signal }: { size: number; minCount: number; signal: AbortSignal },
): Promise<[string, string][]> {
  const symbolOf = new Map(names.map((name, symbol) => [name, symbol]));
  const merges: [string, string][] = [];
  const pairs = new PairTable();
  const count = (word: number, sign: 1 | -1) => {
    const { symbols, count } = words[word];
    for (let i = 1; i < symbols.length; i++) pairs.add(symbols[i - 1], symbols[i], sign * count, word);
  };
  words.forEach((_, word) => count(word, 1));

  let rested = performance.now();
  while (names.length < size && pairs.counts.length > 0) {
    const best = pairs.best();
    if (pairs.counts[best] < minCount) break;
    const [left, right] = [pairs.left[best], pairs.right[best]];
    merges.push([names[left], names[right]]);
    const name = names[left] + names[right];
    const merged = symbolOf.get(name) ?? names.push(name) - 1; // "a" + "bc" and "ab" + "c" are one token
    symbolOf.set(name, merged);
    for (const word of pairs.words[best]) {
      count(word, -1);
      words[word].symbols = mergePair(words[word].symbols, left, right, merged);
      count(word, 1);
    }
    pairs.words[best].clear();
    if (performance.now() - rested > 50) {
      await breathe();
      signal.throwIfAborted();
      rested = performance.now();
    }
  }
  return merges;
}

/** Where and how a learned tokenizer is written. */
export type TrainBpeOptions = {
  /** Tokens in all, specials included; 514 or more. */
  vocabSize: number;
  /** The folder that receives the five files; made if missing. */
  folder: string;
  /** A pair must occur this often to become a token. */
  minCount?: number;
  /** Tokens of the longest text the model will take, specials included. */
  modelMaxLength?: number;
  signal?: AbortSignal;
};

/**
 * Learns a CLIP tokenizer from texts and writes `vocab.json`, `merges.txt`, `tokenizer.json`, `tokenizer_config.json`
 * and `special_tokens_map.json`, which `loadTokenizer()` and transformers' CLIPTokenizer open.
 * Deterministic. Returns the size of the vocabulary, which is smaller than asked when the texts hold too few pairs.
 */
export async function trainBpe(
  texts: Iterable<string>,
  { vocabSize, folder, minCount = 2, modelMaxLength = 77, signal = interruptSignal() }: TrainBpeOptions,
): Promise<{ vocabSize: number; merges: number }> {
  const bpe = await learnBpe(texts, { vocabSize, minCount, signal });
  await mkdir(folder, { recursive: true });
  const files = Object.entries(clipFiles(bpe, modelMaxLength));
  for (const [name, content] of files) await writeFileAtomic(join(folder, name), content);
  return { vocabSize: bpe.vocab.size, merges: bpe.merges.length };
}

/** The contents of a CLIP tokenizer's files by file name. */
function clipFiles(bpe: Bpe, modelMaxLength: number): Record<string, string> {
  const json = (value: unknown) => `${JSON.stringify(value, null, 1)}\n`;
  const { id: bosId, ...bos } = specialToken(bpe.vocab.get(CLIP_BOS) as number, CLIP_BOS, true);
  const { id: eosId, ...eos } = specialToken(bpe.vocab.get(CLIP_EOS) as number, CLIP_EOS, false);
  const added = [specialToken(bosId, CLIP_BOS, true), specialToken(eosId, CLIP_EOS, false)];
  const roles = { bos_token: CLIP_BOS, eos_token: CLIP_EOS, pad_token: CLIP_EOS, unk_token: CLIP_EOS };
  return {
    "vocab.json": `${JSON.stringify(Object.fromEntries(bpe.vocab))}\n`,
    "merges.txt": `#version: 0.2\n${bpe.merges.map((pair) => `${pair.join(" ")}\n`).join("")}`,
    "tokenizer.json": json(clipTokenizerJson(bpe, { bos: CLIP_BOS, eos: CLIP_EOS, unk: CLIP_EOS, added })),
    "tokenizer_config.json": json({
      added_tokens_decoder: { [bosId]: bos, [eosId]: eos },
      add_prefix_space: false,
      ...roles,
      clean_up_tokenization_spaces: true,
      do_lower_case: true,
      errors: "replace",
      model_max_length: modelMaxLength,
      tokenizer_class: "CLIPTokenizer",
    }),
    "special_tokens_map.json": json(roles),
  };
}
