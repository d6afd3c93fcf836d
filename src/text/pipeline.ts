/**
 * A `tokenizer.json` as a function from text to ids. Normalising, cutting into words and merging are the library's, except the steps that
 * it only approximates: those are replaced by our own, which give what the Rust library gives.
 */
import { runInNewContext } from "node:vm";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { type AddedFlags, type Literal, type Part, splitter } from "./added";
import { type LibraryModel, makeModel } from "./model";
import { precompiled, readRules } from "./precompiled";
import type { TokenizerJson } from "./tokenizer-check";

/** Ids of a text, without the tokens around it. `literal`: where added tokens that stand in it are letters like any others. */
export type Encoder = (text: string, literal: Literal) => number[];

type Json = Record<string, unknown>;
type Normalize = (text: string) => string;
type PreTokenize = (text: string, options: { section_index: number }) => string[];
/** What is used of the library's objects; their public types do not show it. */
type Step = { normalize?: Normalize; pre_tokenize_text?: PreTokenize; normalizers?: Step[]; tokenizers?: Step[] };
type Opened = {
  normalizer: (Normalize & Step) | null;
  pre_tokenizer: (PreTokenize & Step) | null;
  model: LibraryModel;
};

/** Texts on which a pattern with exponential search would never end: T5's normaliser takes control characters out, so another one ends them. */
const PROBES = ["a", " ", "1", "!", "\n", "字", "ab ", "'s"].map((piece) => `${piece.repeat(400)}\u0001\u25ca`);
const PROBE_MS = 2000;

/** Opens a checked `tokenizer.json`. @throws Error naming the file where a step is not known or takes exponential time. */
export function openPipeline(path: string, json: TokenizerJson): Encoder {
  try {
    const encode = makeEncoder(json);
    // a time limit on regular expressions exists only inside node:vm; what is called there is our own function
    const probe = () => PROBES.forEach((text) => encode(text, false));
    runInNewContext("probe()", { probe }, { timeout: PROBE_MS });
    return encode;
  } catch (error) {
    const isSlow = (error as { code?: string }).code === "ERR_SCRIPT_EXECUTION_TIMEOUT";
    const text = isSlow ? "a pattern in it takes exponential time on repeated characters" : (error as Error).message;
    throw new Error(`${path} is not a usable tokenizer: ${text}`, { cause: error });
  }
}

function makeEncoder(json: TokenizerJson): Encoder {
  const library = openLibrary(json);
  const normalize = (text: string) => (library.normalizer ? library.normalizer(text) : text);
  const cut = (text: string, start: number): string[] =>
    library.pre_tokenizer ? library.pre_tokenizer(text, { section_index: start === 0 ? 0 : 1 }) : [text];
  const model = makeModel(json, library.model);
  const isNormalized = (token: AddedFlags & { normalized?: boolean; special?: boolean }) => token.normalized ?? !token.special;
  const raw = splitter(json.added_tokens.filter((token) => !isNormalized(token)));
  const late = splitter(json.added_tokens.filter(isNormalized).map((token) => ({ ...token, content: normalize(token.content) })));

  const plain = ({ text, start }: Part, asText: boolean): number[] => {
    const normal = normalize(text);
    if (normal === "") return [];
    const parts = asText ? [{ text: normal, start: 0 }] : late(normal);
    return parts.flatMap((part) => (part.id === undefined ? model(cut(part.text, start + part.start), asText) : [part.id]));
  };
  return (text, literal) => {
    const ids: number[] = [];
    for (const part of raw(text, literal)) {
      if (part.id !== undefined) ids.push(part.id);
      else if (part.text !== "") for (const id of plain(part, isLiteral(part, literal))) ids.push(id);
    }
    return ids;
  };
}

const isLiteral = ({ text, start }: Part, literal: Literal): boolean =>
  typeof literal === "boolean" ? literal : literal.some(([from, to]) => start < to && start + text.length > from);

/** The library without added tokens, which are split off before, and without a Unigram model, which is ours. */
function openLibrary(json: TokenizerJson): Opened {
  const model = json.model.type === "Unigram" ? { type: "BPE", vocab: {}, merges: [] } : json.model;
  const library = new Library({ ...json, model, added_tokens: [], post_processor: null, decoder: null }, {}) as unknown as Opened;
  mendNormalizer(library.normalizer, json.normalizer as Json | null);
  mendPreTokenizer(library.pre_tokenizer, json.pre_tokenizer as Json | null);
  return library;
}

function mendNormalizer(step: Step | null, config: Json | null): void {
  if (!step || !config) return;
  if (config.type === "Sequence") step.normalizers?.forEach((inner, i) => mendNormalizer(inner, (config.normalizers as Json[])[i]));
  else if (config.type === "Precompiled" && config.precompiled_charsmap)
    step.normalize = precompiled(readRules(Buffer.from(String(config.precompiled_charsmap), "base64")));
  else if (config.type === "Prepend") step.normalize = (text) => (text === "" ? "" : `${config.prepend}${text}`);
}

function mendPreTokenizer(step: Step | null, config: Json | null): void {
  if (!step || !config) return;
  if (config.type === "Sequence") step.tokenizers?.forEach((inner, i) => mendPreTokenizer(inner, (config.pretokenizers as Json[])[i]));
  else if (config.type === "Metaspace") step.pre_tokenize_text = metaspace(config);
}

/** Blanks become `▁`, one is put in front, and each begins a word. */
function metaspace(config: Json): PreTokenize {
  const mark = String(config.replacement ?? "▁");
  const scheme = config.prepend_scheme ?? (config.add_prefix_space === false ? "never" : "always");
  const words = new RegExp(`${mark}?[^${mark}]+|${mark}`, "gu");
  return (text, { section_index }) => {
    const marked = text.replaceAll(" ", mark);
    const isPrepended = (scheme === "always" || (scheme === "first" && section_index === 0)) && !marked.startsWith(mark);
    const whole = isPrepended ? mark + marked : marked;
    return config.split === false ? [whole] : (whole.match(words) ?? []);
  };
}
