/** The tokenizer files of a checkpoint folder, in all their spellings, as one `tokenizer.json` and its settings. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { readJson } from "../files/json";
import type { AddedToken } from "./clip";
import { llamaSteps } from "./pipelines";
import { readSentencePiece, type SentencePieceModel } from "./sentencepiece";
import { checkTokenizerJson, refuse, type TokenizerJson } from "./tokenizer-check";
import { FAMILIES, type Family, guessFamily, llamaScheme } from "./tokenizer-families";
import { className, declaredTokens, type Folder, holds, type Json, openFolder, ROLES, type Role, roleToken } from "./tokenizer-folder";

/** What stands around the vocabulary. */
export type TokenizerSettings = {
  /** Special tokens by role, where the checkpoint has them. */
  special: { [role in Role]?: string };
  /** Tokens of the longest text, specials included; Infinity where the files do not say. */
  modelMaxLength: number;
  paddingSide: "left" | "right";
  truncationSide: "left" | "right";
  /** Whether decoded texts lose the blanks before marks and contractions (`clean_up_tokenization_spaces`). */
  isCleaned: boolean;
  /** Whether the model looks at the attention mask; SigLIP does not. */
  usesMask: boolean;
};
export type TokenizerFiles = {
  path: string;
  json: TokenizerJson;
  settings: TokenizerSettings;
  /** SigLIP's SentencePiece model, which its own pipeline reads. */
  siglip?: { model: SentencePieceModel; lower: boolean };
};

/** Reads `tokenizer.json`, or the older files of the class that `tokenizer_config.json` names. @throws Error naming file and entry. */
export function readTokenizerFiles(folder: string): TokenizerFiles {
  const from = openFolder(folder);
  const path = join(folder, "tokenizer.json");
  const raw = existsSync(path) ? { path, json: asLoaded(readJson(path), from) } : familyOf(from).build(from);
  const json = checkTokenizerJson(raw.path, addMissing(raw.json, from));
  const files: TokenizerFiles = { path: raw.path, json, settings: settingsOf(from, json) };
  if (className(from) === "SiglipTokenizer" && holds(from, "spiece.model"))
    files.siglip = { model: readSentencePiece(join(folder, "spiece.model")), lower: from.config.do_lower_case !== false };
  return files;
}

/** Models whose LlamaTokenizer transformers 5 does not take at its word: it keeps the pipeline that tokenizer.json holds. */
const KEPT = /^(llava|llava_next|vipllava|internlm[23]|fuyu|jamba|molmo2?|nemotron|openvla|phi3|phi3_v|phimoe|minicpm3|minicpmv|arctic)$/;

/** transformers 5 rebuilds a Llama tokenizer's first step from `legacy`, whatever tokenizer.json says. */
function asLoaded(json: Json, from: Folder): Json {
  if (className(from) !== "LlamaTokenizer" || KEPT.test(from.modelType)) return json;
  return { ...json, ...llamaSteps(llamaScheme(from)) };
}

function familyOf(from: Folder): Family {
  const known = Object.entries(FAMILIES).map(([name, { files }]) => `${name} (${files.join(", ")})`);
  const named = className(from) || guessFamily(from);
  const family = Object.hasOwn(FAMILIES, named) ? FAMILIES[named] : undefined;
  if (family && holds(from, ...family.files)) return family;
  const why = named ? `tokenizer_class ${named}` : "no tokenizer_config.json that names a tokenizer_class";
  throw new Error(`${from.folder}: no tokenizer.json, and ${why}; without tokenizer.json these can be read: ${known.join("; ")}`);
}

/** transformers adds what only tokenizer_config.json declares. */
function addMissing(json: Json, from: Folder): Json {
  if (json.added_tokens !== undefined && !Array.isArray(json.added_tokens)) return json; // the check says so
  const added = (json.added_tokens ?? []) as AddedToken[];
  const contents = new Set(added.map((entry) => entry?.content));
  return {
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: null,
    ...json,
    added_tokens: [...added, ...declaredTokens(from).filter(({ content }) => !contents.has(content))],
  };
}

function settingsOf(from: Folder, json: TokenizerJson): TokenizerSettings {
  const { config, folder } = from;
  const path = join(folder, "tokenizer_config.json");
  const family = Object.hasOwn(FAMILIES, className(from) || guessFamily(from)) ? className(from) || guessFamily(from) : "";
  const misfits: string[] = [];
  const side = (key: string, missing: string): "left" | "right" => {
    const value = config[key] ?? missing;
    if (value !== "left" && value !== "right") misfits.push(`${key}: ${JSON.stringify(value)}, expected "left" or "right"`);
    return value as "left" | "right";
  };
  const length = config.model_max_length ?? Number.POSITIVE_INFINITY;
  if (typeof length !== "number" || !(length >= 1))
    misfits.push(`model_max_length: ${JSON.stringify(length)}, expected a number of tokens`);
  const names = config.model_input_names;
  const settings: TokenizerSettings = {
    special: {},
    modelMaxLength: (length as number) > 1e9 ? Number.POSITIVE_INFINITY : (length as number), // Python writes 1e30 for "no limit"
    paddingSide: side("padding_side", family === "LlamaTokenizer" ? "left" : "right"),
    truncationSide: side("truncation_side", "right"),
    // in byte-pair vocabularies blanks belong to the pieces; removing them would corrupt the text
    isCleaned: config.clean_up_tokenization_spaces === true && json.model.type !== "BPE",
    usesMask: !Array.isArray(names) || names.includes("attention_mask"),
  };
  const defaults: TokenizerSettings["special"] = family ? FAMILIES[family].roles : {};
  const known = tokensOf(json);
  for (const role of ROLES) {
    const declared = roleToken(from, role);
    const token = declared ?? (config[`${role}_token`] === null ? undefined : defaults[role]);
    if (token === undefined) continue;
    if (known.has(token)) settings.special[role] = token;
    else if (declared) misfits.push(`${role}_token: ${JSON.stringify(token)} is not in the vocabulary`);
  }
  refuse(path, misfits);
  return settings;
}

/** All tokens of a tokenizer.json. */
function tokensOf({ model, added_tokens }: TokenizerJson): Set<string> {
  const vocab = model.vocab as Json | [string, number][];
  return new Set([
    ...(Array.isArray(vocab) ? vocab.map(([piece]) => piece) : Object.keys(vocab)),
    ...added_tokens.map(({ content }) => content),
  ]);
}
