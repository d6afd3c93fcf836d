/**
 * CLIP's text pipeline (Radford et al. 2021; `CLIPTokenizer` of transformers): lower-cased text, cut into words,
 * each word as UTF-8 bytes, the last byte of a word marked with `</w>`, byte pairs merged.
 */

export const CLIP_BOS = "<|startoftext|>";
export const CLIP_EOS = "<|endoftext|>";
export const END_OF_WORD = "</w>";

/** How a text is cut into words (the specials, English contractions, letters, one digit, anything else). */
const WORDS = String.raw`<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+`;

/** The second cut, made by the byte-level step (GPT-2's words); it only ever divides what WORDS found. */
const GPT2_WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** Bytes that stand for themselves in a vocabulary; the other 68 are shown as U+0100 and onwards (GPT-2). */
const isVisible = (byte: number): boolean => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);

const visible = Array.from({ length: 256 }, (_, byte) => byte).filter(isVisible);
const hidden = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !isVisible(byte));

/** The character that stands for each byte: BYTE_CHARACTERS[byte]. */
export const BYTE_CHARACTERS: readonly string[] = Array.from({ length: 256 }, (_, byte) =>
  String.fromCharCode(isVisible(byte) ? byte : 256 + hidden.indexOf(byte)),
);

/** The 256 byte characters in the order of the published vocabularies: visible bytes first. */
export const BYTE_ALPHABET: readonly string[] = [...visible, ...hidden].map((byte) => BYTE_CHARACTERS[byte]);

/** One word as the characters that stand for its UTF-8 bytes. */
export const byteCharacters = (word: string): string[] => Array.from(new TextEncoder().encode(word), (byte) => BYTE_CHARACTERS[byte]);

/** Lone surrogates, which no UTF-8 text can hold, become U+FFFD. */
export const wellFormed = (text: string): string => text.replace(/\p{Cs}/gu, "\uFFFD");

/**
 * Lower case, code point by code point, as the tokenizers library does. JavaScript alone looks at the context,
 * for one letter: a capital sigma at the end of a Greek word.
 */
export const lowerCase = (text: string): string => text.replaceAll("Σ", "σ").toLowerCase();

/** Cuts a text into CLIP's words, lower-cased and composed (NFC). */
export function clipWords(text: string): string[] {
  const normal = lowerCase(
    wellFormed(text)
      .normalize("NFC")
      .replace(/\p{White_Space}+/gu, " "),
  );
  const words = normal.match(new RegExp(WORDS.replaceAll(String.raw`\s`, String.raw`\p{White_Space}`), "gu")) ?? [];
  return words.flatMap((word) => word.match(GPT2_WORDS) ?? []);
}

/** A vocabulary and its merges, as `vocab.json` and `merges.txt` hold them. */
export type Bpe = { vocab: Map<string, number>; merges: [string, string][] };

/** Special tokens by role, and all tokens that stand outside the merges. */
export type ClipSpecials = { bos: string; eos: string; unk: string; added: AddedToken[] };
export type AddedToken = {
  id: number;
  content: string;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
  normalized: boolean;
  special: boolean;
};

/** An added token with the flags that the published CLIP files give the two specials. */
export const specialToken = (id: number, content: string, normalized: boolean): AddedToken => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized,
  special: true,
});

/**
 * The `tokenizer.json` of a CLIP checkpoint that carries only `vocab.json` and `merges.txt`.
 * The ids of bos and eos are those of the vocabulary or of `specials.added`.
 */
export function clipTokenizerJson({ vocab, merges }: Bpe, specials: ClipSpecials): Record<string, unknown> {
  const idOf = (token: string) => specials.added.find((entry) => entry.content === token)?.id ?? vocab.get(token);
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: specials.added,
    normalizer: {
      type: "Sequence",
      normalizers: [{ type: "NFC" }, { type: "Replace", pattern: { Regex: String.raw`\s+` }, content: " " }, { type: "Lowercase" }],
    },
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern: { Regex: WORDS }, behavior: "Removed", invert: true },
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
      ],
    },
    post_processor: {
      type: "RobertaProcessing",
      sep: [specials.eos, idOf(specials.eos)],
      cls: [specials.bos, idOf(specials.bos)],
      trim_offsets: false,
      add_prefix_space: false,
    },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: specials.unk,
      continuing_subword_prefix: "",
      end_of_word_suffix: END_OF_WORD,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(vocab),
      merges,
    },
  };
}
