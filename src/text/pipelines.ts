/** The published pipelines as `tokenizer.json` holds them, for checkpoints that carry only the older files. */
import type { AddedToken } from "./clip";
import { mergesOf, type SentencePieceModel } from "./sentencepiece";

type Json = Record<string, unknown>;
type Vocabulary = { vocab: ReadonlyMap<string, number>; merges: [string, string][]; added: AddedToken[] };

/** Qwen2's words: contractions, letters with one mark before them, single digits, marks with the line ends after them, blanks. */
const QWEN2_WORDS = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

const shell = (parts: Json): Json => ({
  ...{ version: "1.0", truncation: null, padding: null },
  ...{ normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null },
  ...parts,
});
const bpe = (vocab: ReadonlyMap<string, number>, merges: [string, string][], options: Json): Json => ({
  ...{ type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: "", end_of_word_suffix: "" },
  ...{ fuse_unk: false, byte_fallback: false, ignore_merges: false },
  ...options,
  ...{ vocab: Object.fromEntries(vocab), merges },
});
const byteLevel = (use_regex: boolean): Json => ({ type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex });
const token = (id: string, type_id = 0): Json => ({ SpecialToken: { id, type_id } });
const sequence = (id: "A" | "B", type_id = 0): Json => ({ Sequence: { id, type_id } });

/** Special tokens around one text and around two; their ids are those of the vocabulary. */
const template = (single: Json[], pair: Json[]): Json => ({ type: "TemplateProcessing", single, pair, special_tokens: {} });

/** GPT-2 and OPT: byte-level BPE with GPT-2's words; `start` begins every text (OPT's `</s>`). */
export const gpt2Json = ({ vocab, merges, added }: Vocabulary, start?: string): Json =>
  shell({
    added_tokens: added,
    pre_tokenizer: byteLevel(true),
    post_processor: start
      ? template([token(start), sequence("A")], [token(start), sequence("A"), token(start), sequence("B", 1)])
      : byteLevel(true),
    decoder: byteLevel(true),
    model: bpe(vocab, merges, {}),
  });

/** Qwen2: byte-level BPE with its own words, after composition (NFC). */
export const qwen2Json = ({ vocab, merges, added }: Vocabulary): Json =>
  shell({
    added_tokens: added,
    normalizer: { type: "NFC" },
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [{ type: "Split", pattern: { Regex: QWEN2_WORDS }, behavior: "Isolated", invert: false }, byteLevel(false)],
    },
    post_processor: byteLevel(false),
    decoder: byteLevel(false),
    model: bpe(vocab, merges, {}),
  });

export type BertParts = {
  vocab: ReadonlyMap<string, number>;
  unk: string;
  sep: string;
  cls: string;
  lower: boolean;
  stripAccents: boolean | null;
  chinese: boolean;
  added: AddedToken[];
};

/** BERT's WordPiece (Devlin et al. 2018). */
export const bertJson = ({ vocab, unk, sep, cls, lower, stripAccents, chinese, added }: BertParts): Json =>
  shell({
    added_tokens: added,
    normalizer: { type: "BertNormalizer", clean_text: true, handle_chinese_chars: chinese, strip_accents: stripAccents, lowercase: lower },
    pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: template(
      [token(cls), sequence("A"), token(sep)],
      [token(cls), sequence("A"), token(sep), sequence("B", 1), token(sep, 1)],
    ),
    decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    model: {
      ...{ type: "WordPiece", unk_token: unk, continuing_subword_prefix: "##", max_input_chars_per_word: 100 },
      vocab: Object.fromEntries(vocab),
    },
  });

/** How a Llama tokenizer marks the start of a word: its normaliser or its pre-tokenizer. `each`: in front of every stretch between added tokens. */
export const llamaSteps = (scheme: "first" | "always" | "each"): { normalizer: Json | null; pre_tokenizer: Json | null } =>
  scheme === "each"
    ? {
        normalizer: {
          type: "Sequence",
          normalizers: [
            { type: "Prepend", prepend: "▁" },
            { type: "Replace", pattern: { String: " " }, content: "▁" },
          ],
        },
        pre_tokenizer: null,
      }
    : { normalizer: null, pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: scheme, split: false } };

export type LlamaParts = { scheme: "first" | "always" | "each"; bos?: string; eos?: string; added: AddedToken[] };

/** Llama and InternLM2: SentencePiece BPE, bytes for what it does not know. */
export function llamaJson(model: SentencePieceModel, { scheme, bos, eos, added }: LlamaParts): Json {
  const edge = (name: string | undefined, type: number) => (name ? [token(name, type)] : []);
  const around = (id: "A" | "B", type: number) => [...edge(bos, type), sequence(id, type), ...edge(eos, type)];
  return shell({
    added_tokens: added,
    ...llamaSteps(scheme),
    post_processor: template(around("A", 0), [...around("A", 0), ...around("B", 1)]),
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: bpe(new Map(model.pieces.map(({ piece }, id) => [piece, id])), mergesOf(model), {
      ...{ continuing_subword_prefix: null, end_of_word_suffix: null },
      ...{ unk_token: model.pieces[model.unkId].piece, fuse_unk: true, byte_fallback: model.byteFallback },
    }),
  });
}

export type UnigramParts = { pieces: [string, number][]; unknown: number; charsmap: Uint8Array; eos: string; added: AddedToken[] };

/** T5: SentencePiece Unigram after compiled rules, word by word; `</s>` ends each text. */
export const unigramJson = ({ pieces, unknown, charsmap, eos, added }: UnigramParts): Json =>
  shell({
    added_tokens: added,
    normalizer: charsmap.length > 0 ? { type: "Precompiled", precompiled_charsmap: Buffer.from(charsmap).toString("base64") } : null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [{ type: "WhitespaceSplit" }, { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true }],
    },
    post_processor: template([sequence("A"), token(eos)], [sequence("A"), token(eos), sequence("B"), token(eos)]),
    decoder: { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true },
    model: { type: "Unigram", unk_id: unknown, vocab: pieces, byte_fallback: false },
  });
