/** Tokenizer classes that can be built from their older files, without a `tokenizer.json`. To add one, add a row. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { readJson } from "../files/json";
import { type AddedToken, CLIP_BOS, CLIP_EOS, clipTokenizerJson, specialToken } from "./clip";
import { bertJson, gpt2Json, llamaJson, qwen2Json, unigramJson } from "./pipelines";
import { readSentencePiece, type SentencePieceModel } from "./sentencepiece";
import { mergeMisfits, refuse, vocabMisfits } from "./tokenizer-check";
import { declaredTokens, type Folder, holds, type Json, type Role, roleToken } from "./tokenizer-folder";

export type Family = {
  files: string[];
  /** What the class itself takes for a role that no file names. */
  roles: { [role in Role]?: string };
  build: (from: Folder) => { path: string; json: Json };
};

const SPIECE = "spiece.model";
const LLAMA_ROLES = { bos: "<s>", eos: "</s>", unk: "<unk>" };

export const FAMILIES: Record<string, Family> = {
  CLIPTokenizer: {
    files: ["vocab.json", "merges.txt"],
    roles: { bos: CLIP_BOS, eos: CLIP_EOS, pad: CLIP_EOS, unk: CLIP_EOS },
    build: buildClip,
  },
  GPT2Tokenizer: {
    files: ["vocab.json", "merges.txt"],
    roles: { bos: "<|endoftext|>", eos: "<|endoftext|>", unk: "<|endoftext|>" },
    build: (from) => buildByteLevel(from, "GPT2Tokenizer", (bpe) => gpt2Json(bpe, startToken(from, "GPT2Tokenizer", false))),
  },
  Qwen2Tokenizer: {
    files: ["vocab.json", "merges.txt"],
    roles: { eos: "<|endoftext|>", pad: "<|endoftext|>" },
    build: (from) => buildByteLevel(from, "Qwen2Tokenizer", qwen2Json),
  },
  BertTokenizer: {
    files: ["vocab.txt"],
    roles: { unk: "[UNK]", sep: "[SEP]", pad: "[PAD]", cls: "[CLS]", mask: "[MASK]" },
    build: buildBert,
  },
  LlamaTokenizer: { files: ["tokenizer.model"], roles: LLAMA_ROLES, build: (from) => buildLlama(from, llamaScheme(from)) },
  InternLM2Tokenizer: { files: ["tokenizer.model"], roles: { ...LLAMA_ROLES, pad: "</s>" }, build: (from) => buildLlama(from, "each") },
  T5Tokenizer: { files: [SPIECE], roles: { eos: "</s>", unk: "<unk>", pad: "<pad>" }, build: buildT5 },
  SiglipTokenizer: { files: [SPIECE], roles: { eos: "</s>", unk: "<unk>", pad: "</s>" }, build: buildSiglip },
};

/** The class of a folder whose files do not name one, where the files leave only one. */
export function guessFamily(from: Folder): string {
  const { modelType } = from;
  if (/^clip/.test(modelType)) return "CLIPTokenizer";
  if (/^siglip/.test(modelType)) return "SiglipTokenizer";
  if (holds(from, "vocab.txt")) return "BertTokenizer";
  if (/^(llama|mistral)/.test(modelType)) return "LlamaTokenizer";
  if (/^(t5|mt5)/.test(modelType)) return "T5Tokenizer";
  return "";
}

/**
 * Where a Llama tokenizer puts the blank that begins a word: `first` in front of a text, `always` in front of each stretch between added
 * tokens that does not begin with one. tokenizer_config.json's `legacy` decides; a file without it is not legacy (transformers 5).
 */
export const llamaScheme = ({ config }: Folder): "first" | "always" => (config.legacy === true ? "always" : "first");

/** Whether a flag such as `add_bos_token` is set; `missing` is the class's default. */
const flag = ({ config }: Folder, key: string, missing: boolean): boolean =>
  typeof config[key] === "boolean" ? config[key] === true : missing;

/** The token that begins every text, where `add_bos_token` asks for one. */
function startToken(from: Folder, family: string, missing: boolean): string | undefined {
  return flag(from, "add_bos_token", missing) ? (roleToken(from, "bos") ?? FAMILIES[family].roles.bos) : undefined;
}

/** Tokens of all roles that are in the vocabulary, as added tokens, and those that the files declare. */
function addedTokens(from: Folder, family: string, ids: ReadonlyMap<string, number>, normalized: (token: string) => boolean): AddedToken[] {
  const declared = declaredTokens(from);
  const roles = Object.keys(FAMILIES[family].roles) as Role[];
  const contents = new Set(roles.map((role) => roleToken(from, role) ?? (FAMILIES[family].roles[role] as string)));
  const own = [...contents]
    .filter((token) => ids.has(token) && !declared.some(({ content }) => content === token))
    .map((token) => specialToken(ids.get(token) as number, token, normalized(token)));
  return [...declared, ...own].sort((a, b) => a.id - b.id);
}

/** `vocab.json` and `merges.txt`. */
function readBpe(from: Folder): { path: string; vocab: Map<string, number>; merges: [string, string][] } {
  const path = join(from.folder, "vocab.json");
  const mergesPath = join(from.folder, "merges.txt");
  const vocab = new Map(Object.entries(readJson(path)));
  refuse(path, vocabMisfits("vocab.json", vocab, declaredTokens(from)));
  const lines = readFileSync(mergesPath, "utf8").split(/\r?\n/);
  const entries = lines.flatMap((text, i) => (text === "" || text.startsWith("#version") ? [] : [{ text, line: i + 1 }]));
  const merges = entries.map(({ text }) => text.split(" ") as [string, string]);
  const misfits = mergeMisfits((i) => `line ${entries[i].line}`, merges, new Set(vocab.keys()));
  refuse(mergesPath, misfits);
  return { path, vocab: vocab as Map<string, number>, merges };
}

function buildClip(from: Folder): { path: string; json: Json } {
  const { path, vocab, merges } = readBpe(from);
  const role = (name: Role) => roleToken(from, name) ?? (FAMILIES.CLIPTokenizer.roles[name] as string);
  const [bos, eos, unk] = [role("bos"), role("eos"), role("unk")];
  const declared = declaredTokens(from);
  const missing = [bos, eos, unk].filter((token) => !vocab.has(token) && !declared.some(({ content }) => content === token));
  refuse(
    path,
    missing.map((token) => `special token ${JSON.stringify(token)} is not in the vocabulary`),
  );
  const added = addedTokens(from, "CLIPTokenizer", vocab, (token) => token === bos);
  return { path, json: clipTokenizerJson({ vocab, merges }, { bos, eos, unk, added }) };
}

function buildByteLevel(
  from: Folder,
  family: string,
  make: (bpe: { vocab: Map<string, number>; merges: [string, string][]; added: AddedToken[] }) => Json,
): { path: string; json: Json } {
  const { path, vocab, merges } = readBpe(from);
  return { path, json: make({ vocab, merges, added: addedTokens(from, family, vocab, () => false) }) };
}

function buildBert(from: Folder): { path: string; json: Json } {
  const path = join(from.folder, "vocab.txt");
  const tokens = readFileSync(path, "utf8")
    .replace(/\r?\n$/, "")
    .split(/\r?\n/);
  const vocab = new Map(tokens.map((token, id) => [token, id]));
  const twice = tokens.filter((token, id) => vocab.get(token) !== id);
  const needed = ["unk", "sep", "cls"].map((role) => roleToken(from, role) ?? (FAMILIES.BertTokenizer.roles[role as Role] as string));
  refuse(path, [
    ...twice.map((token) => `${JSON.stringify(token)} stands there twice`),
    ...needed.filter((token) => !vocab.has(token)).map((token) => `special token ${JSON.stringify(token)} is not in the vocabulary`),
  ]);
  const [unk, sep, cls] = needed;
  const accents = from.config.strip_accents;
  return {
    path,
    json: bertJson({
      ...{ vocab, unk, sep, cls },
      lower: flag(from, "do_lower_case", true),
      stripAccents: typeof accents === "boolean" ? accents : null,
      chinese: flag(from, "tokenize_chinese_chars", true),
      added: addedTokens(from, "BertTokenizer", vocab, () => false),
    }),
  };
}

function spieceOf(from: Folder, name: string, type: SentencePieceModel["type"]): { path: string; model: SentencePieceModel } {
  const path = join(from.folder, name);
  const model = readSentencePiece(path);
  if (model.type !== type) refuse(path, [`a ${model.type} model, expected ${type}`]);
  return { path, model };
}

function buildLlama(from: Folder, scheme: "first" | "always" | "each"): { path: string; json: Json } {
  const { path, model } = spieceOf(from, "tokenizer.model", "bpe");
  const ids = new Map(model.pieces.map(({ piece }, id) => [piece, id]));
  const around = {
    bos: flag(from, "add_bos_token", true) ? (roleToken(from, "bos") ?? LLAMA_ROLES.bos) : undefined,
    eos: flag(from, "add_eos_token", false) ? (roleToken(from, "eos") ?? LLAMA_ROLES.eos) : undefined,
  };
  return { path, json: llamaJson(model, { scheme, ...around, added: addedTokens(from, "LlamaTokenizer", ids, () => false) }) };
}

function buildT5(from: Folder): { path: string; json: Json } {
  const { path, model } = spieceOf(from, SPIECE, "unigram");
  const pieces = model.pieces.map(({ piece, score }): [string, number] => [piece, score]);
  // sentinels follow the pieces, the last of them first
  const sentinels = Number(from.config.extra_ids ?? 100);
  for (let i = sentinels - 1; i >= 0; i--) pieces.push([`<extra_id_${i}>`, 0]);
  const ids = new Map(pieces.map(([piece], id) => [piece, id]));
  const named = Array.from({ length: sentinels }, (_, i) => `<extra_id_${i}>`).map((token) =>
    specialToken(ids.get(token) as number, token, false),
  );
  const others = addedTokens(from, "T5Tokenizer", ids, () => false);
  const added = [...others, ...named.filter(({ content }) => !others.some((entry) => entry.content === content))];
  return {
    path,
    json: unigramJson({ pieces, unknown: model.unkId, charsmap: model.charsmap, eos: "</s>", added: added.sort((a, b) => a.id - b.id) }),
  };
}

function buildSiglip(from: Folder): { path: string; json: Json } {
  const { path, model } = spieceOf(from, SPIECE, "unigram");
  const pieces = model.pieces.map(({ piece, score }): [string, number] => [piece, score]);
  const ids = new Map(pieces.map(([piece], id) => [piece, id]));
  const added = addedTokens(from, "SiglipTokenizer", ids, () => false).map((token) => ({ ...token, lstrip: true, rstrip: true }));
  return { path, json: unigramJson({ pieces, unknown: model.unkId, charsmap: model.charsmap, eos: "</s>", added }) };
}
