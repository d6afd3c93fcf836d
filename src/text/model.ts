/** Words to ids: byte pairs and WordPiece by the library, Unigram by our own search. */
import type { TokenizerJson } from "./tokenizer-check";
import { unigram } from "./unigram";
import { remembering } from "./words";

/** Ids of words. `asText`: no word becomes an added token, not even one that spells it. */
export type Model = (words: readonly string[], asText: boolean) => number[];

/** What is used of the library's model. */
export type LibraryModel = ((words: string[]) => string[]) & { tokens_to_ids: Map<string, number> };

export function makeModel(json: TokenizerJson, library: LibraryModel): Model {
  const make = json.model.type === "Unigram" ? unigramWords(json) : libraryWords(json, library);
  const split = wordStarts(json);
  const plain = remembering(make(false));
  let strict: ReturnType<typeof remembering> | undefined;
  const typed = () => {
    strict ??= remembering(make(true));
    return strict;
  };
  return (words, asText) => (asText ? typed() : plain)(split ? words.flatMap((word) => word.match(split) ?? []) : words);
}

/**
 * Llama's pipeline has no words: a text is one. Where no merge makes a piece with `▁` behind another letter, none reaches over the start of
 * a word, so that words can be merged, and remembered, one by one.
 */
function wordStarts({ model, pre_tokenizer }: TokenizerJson): RegExp | undefined {
  const isWhole = model.type === "BPE" && (pre_tokenizer === null || (pre_tokenizer as { split?: boolean }).split === false);
  if (!isWhole || model.ignore_merges === true) return undefined;
  const joined = (model.merges as (string | [string, string])[]).map((pair) =>
    typeof pair === "string" ? pair.replace(" ", "") : pair.join(""),
  );
  return joined.some((piece) => /[^▁]▁/u.test(piece)) ? undefined : /▁+[^▁]*|[^▁]+/gu;
}

function libraryWords(json: TokenizerJson, library: LibraryModel): (asText: boolean) => (word: string) => number[] {
  const ids = library.tokens_to_ids;
  const unknown = ids.get(String(json.model.unk_token));
  const added = new Set(json.added_tokens.map(({ id }) => id));
  const idOf = (piece: string): number => {
    const id = ids.get(piece) ?? unknown;
    if (id === undefined)
      throw new Error(`the text holds ${JSON.stringify(piece)}, which is not in the vocabulary, and there is no unk_token`);
    return id;
  };
  const spells = (piece: string, id: number) => added.has(id) && id !== unknown && piece.length > 1;
  return (asText) => (word) =>
    library([word]).flatMap((piece) => {
      const id = idOf(piece);
      return asText && spells(piece, id) ? Array.from(piece, idOf) : [id];
    });
}

function unigramWords(json: TokenizerJson): (asText: boolean) => (word: string) => number[] {
  const pieces = json.model.vocab as [string, number][];
  const unknown = Number(json.model.unk_id ?? 0);
  const ids = new Map(pieces.map(([piece], id) => [piece, id]));
  const hasBytes = json.model.byte_fallback === true;
  const bytesOf = (piece: string) =>
    Array.from(Buffer.from(piece), (byte) => ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`));
  return (asText) => {
    const added = asText ? json.added_tokens : [];
    const contents = new Set(added.map(({ content }) => content));
    const cut = unigram(pieces, { unknown, barred: new Set(added.map(({ id }) => id)) });
    const resolve = (piece: string): number[] => {
      const id = contents.has(piece) ? undefined : ids.get(piece);
      if (id !== undefined) return [id];
      const bytes = hasBytes ? bytesOf(piece) : [undefined];
      return bytes.includes(undefined) ? [unknown] : (bytes as number[]);
    };
    return (word) => cut(word).flatMap(resolve);
  };
}
