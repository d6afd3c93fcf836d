/**
 * SigLIP's text pipeline (`SiglipTokenizer` of transformers, after big_vision's prompt engineering): lower case, no ASCII punctuation, single
 * blanks, then SentencePiece, separately for each stretch between special tokens. Only the first stretch has a blank in front.
 */
import { type Span, splitter } from "./added";
import { cleanUp } from "./decoder";
import type { Encoder } from "./pipeline";
import { normalizeSentence, readRules } from "./precompiled";
import { PIECE, type SentencePieceModel } from "./sentencepiece";
import type { AddedEntry } from "./tokenizer-check";
import { BLANKS, strip } from "./blanks";
import { unigram } from "./unigram";

const PUNCTUATION = /[!-/:-@[-`{-~]/g;
const RUNS_OF_BLANKS = new RegExp(`${BLANKS}+`, "g");

/** Lower-cased (unless `lower` is false), without the 32 ASCII punctuation marks, blanks single and none at the ends. */
export const canonical = (text: string, lower = true): string =>
  strip((lower ? text.toLowerCase() : text).replace(PUNCTUATION, "").replace(RUNS_OF_BLANKS, " "));

export type Siglip = { encode: Encoder; decode: (ids: number[]) => string };

/** Ids of a text, and ids back to text. `added` are the special tokens, which no stretch holds; `lower`: tokenizer_config's `do_lower_case`. */
export function siglipPipeline(model: SentencePieceModel, added: AddedEntry[], lower = true): Siglip {
  const rules = model.charsmap.length > 0 ? readRules(model.charsmap) : undefined;
  const normal = (text: string) => normalizeSentence(text, rules, model);
  const barred = new Set(model.pieces.flatMap(({ kind }, id) => (kind === PIECE.normal || kind === PIECE.userDefined ? [] : [id])));
  const pieces = model.pieces.map(({ piece, score }): [string, number] => [piece, score]);
  // the unknown piece's own score plays no part, nor do those of control pieces
  const floor = pieces.reduce((least, [, score], id) => (barred.has(id) ? least : Math.min(least, score)), 0);
  const scored = pieces.map(([piece, score], id): [string, number] => [piece, barred.has(id) ? floor : score]);
  const cut = unigram(scored, { unknown: model.unkId, round: Math.fround, barred });
  const ids = new Map(pieces.flatMap(([piece], id) => (barred.has(id) ? [] : [[piece, id] as const])));
  const unknown = model.pieces[model.unkId].piece;
  const marker = cut(normal(unknown)).length;
  // SentencePiece drops a blank at the start; a marker before the text keeps it, and its pieces are cut off again
  const stretch = (text: string): number[] =>
    cut(normal(unknown + canonical(text, lower)))
      .slice(marker)
      .map((piece) => ids.get(piece) ?? model.unkId);

  const specials = new Set(added.map(({ id }) => id));
  const split = splitter(added);
  const encode: Encoder = (text, literal) => {
    const whole = `▁${text.replaceAll("▁", " ")}`;
    const moved = typeof literal === "boolean" ? literal : literal.map(([from, to]): Span => [from + 1, to + 1]);
    const found = split(whole, moved).map(({ text: part, id }): number[] => (id === undefined ? stretch(part) : [id]));
    const isBlank = found.length > 1 && found[0].length === 1 && found[0][0] === ids.get("▁"); // nothing before the first special token
    return (isBlank ? found.slice(1) : found).flat();
  };
  return { encode, decode: (list) => cleanUp(joinPieces(list, pieces, specials)) };
}

/** Stretches of pieces and the special tokens between them, as `SiglipTokenizer.convert_tokens_to_string` joins them. */
function joinPieces(ids: number[], pieces: [string, number][], specials: ReadonlySet<number>): string {
  let [out, stretch, isAfterSpecial] = ["", "", false];
  for (const id of ids) {
    const isSpecial = specials.has(id);
    if (isSpecial) {
      out += `${isAfterSpecial ? "" : " "}${stretch.replaceAll("▁", " ")}${pieces[id][0]}`;
      stretch = "";
    } else stretch += stretch === "" ? pieces[id][0].replace(/^▁/, "") : pieces[id][0];
    isAfterSpecial = isSpecial;
  }
  return strip(out + stretch.replaceAll("▁", " "));
}
