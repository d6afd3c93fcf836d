/** The tokenizer files of a checkpoint folder, in all their spellings, as one `tokenizer.json` and its settings. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { readJson } from "../files/json";
import { type AddedToken, CLIP_BOS, CLIP_EOS, clipTokenizerJson, specialToken } from "./clip";
import { checkTokenizerJson, mergeMisfits, refuse, type TokenizerJson, vocabMisfits } from "./tokenizer-check";

/** What stands around the vocabulary. */
export type TokenizerSettings = {
  /** Special tokens by role, where the checkpoint has them. */
  special: { bos?: string; eos?: string; pad?: string; unk?: string };
  /** Tokens of the longest text, specials included; Infinity where the files do not say. */
  modelMaxLength: number;
  paddingSide: "left" | "right";
  truncationSide: "left" | "right";
};
export type TokenizerFiles = { path: string; json: TokenizerJson; settings: TokenizerSettings };

type Json = Record<string, unknown>;
type Folder = { folder: string; config: Json; specials: Json };

const ROLES = ["bos", "eos", "pad", "unk"] as const;

/** A tokenizer class that can be built from its older files. To add one, add a row. */
type Family = { files: string[]; roles: TokenizerSettings["special"]; build: (from: Folder) => { path: string; json: Json } };
const FAMILIES: Record<string, Family> = {
  CLIPTokenizer: {
    files: ["vocab.json", "merges.txt"],
    roles: { bos: CLIP_BOS, eos: CLIP_EOS, pad: CLIP_EOS, unk: CLIP_EOS },
    build: buildClip,
  },
};

/** Reads `tokenizer.json`, or the older files of the class that `tokenizer_config.json` names. @throws Error naming file and entry. */
export function readTokenizerFiles(folder: string): TokenizerFiles {
  const optional = (name: string): Json => (existsSync(join(folder, name)) ? readJson(join(folder, name)) : {});
  const from = { folder, config: optional("tokenizer_config.json"), specials: optional("special_tokens_map.json") };
  const path = join(folder, "tokenizer.json");
  const raw = existsSync(path) ? { path, json: readJson(path) } : familyOf(from).build(from);
  const json = checkTokenizerJson(raw.path, addMissing(raw.json, from));
  return { path: raw.path, json, settings: settingsOf(from, json) };
}

const className = ({ config }: Folder): string => String(config.tokenizer_class ?? "").replace(/Fast$/, "");

function familyOf(from: Folder): Family {
  const { folder } = from;
  const known = Object.entries(FAMILIES).map(([name, { files }]) => `${name} (${files.join(", ")})`);
  const named = className(from) || (isClip(folder) ? "CLIPTokenizer" : "");
  const family = Object.hasOwn(FAMILIES, named) ? FAMILIES[named] : undefined;
  if (family?.files.every((name) => existsSync(join(folder, name)))) return family;
  const why = named ? `tokenizer_class ${named}` : "no tokenizer_config.json that names a tokenizer_class";
  throw new Error(`${folder}: no tokenizer.json, and ${why}; without tokenizer.json these can be read: ${known.join("; ")}`);
}

const isClip = (folder: string): boolean => {
  const config = join(folder, "config.json");
  return existsSync(config) && /^clip/.test(String(readJson(config).model_type));
};

/** A special token is written as text, or as an object with its flags. */
function contentOf(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  const content = (value as Json | null)?.content;
  return typeof content === "string" ? content : undefined;
}

/** The special token of a role: tokenizer_config.json first, then special_tokens_map.json. */
const roleToken = ({ config, specials }: Folder, role: string): string | undefined =>
  contentOf(config[`${role}_token`]) ?? contentOf(specials[`${role}_token`]);

/** The tokens that tokenizer_config.json declares by id. */
function declaredTokens({ config, folder }: Folder): AddedToken[] {
  const declared = config.added_tokens_decoder ?? {};
  return Object.entries(declared as Record<string, Partial<AddedToken>>).map(([id, entry]) => {
    if (!/^\d+$/.test(id) || typeof entry?.content !== "string")
      refuse(join(folder, "tokenizer_config.json"), [`added_tokens_decoder[${JSON.stringify(id)}]: expected an id and { content }`]);
    const { content, single_word = false, lstrip = false, rstrip = false, special = false } = entry;
    return { id: Number(id), content: content as string, single_word, lstrip, rstrip, normalized: entry.normalized ?? !special, special };
  });
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
  const misfits: string[] = [];
  const side = (key: string): "left" | "right" => {
    const value = config[key] ?? "right";
    if (value !== "left" && value !== "right") misfits.push(`${key}: ${JSON.stringify(value)}, expected "left" or "right"`);
    return value as "left" | "right";
  };
  const length = config.model_max_length ?? Number.POSITIVE_INFINITY;
  if (typeof length !== "number" || !(length >= 1))
    misfits.push(`model_max_length: ${JSON.stringify(length)}, expected a number of tokens`);
  const settings: TokenizerSettings = {
    special: {},
    modelMaxLength: (length as number) > 1e9 ? Number.POSITIVE_INFINITY : (length as number), // Python writes 1e30 for "no limit"
    paddingSide: side("padding_side"),
    truncationSide: side("truncation_side"),
  };
  const defaults = Object.hasOwn(FAMILIES, className(from)) ? FAMILIES[className(from)].roles : {};
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

/** CLIP's `vocab.json` and `merges.txt`. */
function buildClip(from: Folder): { path: string; json: Json } {
  const path = join(from.folder, "vocab.json");
  const mergesPath = join(from.folder, "merges.txt");
  const vocab = new Map(Object.entries(readJson(path)));
  const declared = declaredTokens(from);
  refuse(path, vocabMisfits("vocab.json", vocab, declared));

  const lines = readFileSync(mergesPath, "utf8").split(/\r?\n/);
  const entries = lines.flatMap((text, i) => (text === "" || text.startsWith("#version") ? [] : [{ text, line: i + 1 }]));
  const pairs = entries.map(({ text }) => text.split(" ") as [string, string]);
  refuse(
    mergesPath,
    mergeMisfits((i) => `line ${entries[i].line}`, pairs, new Set(vocab.keys())),
  );

  const role = (name: (typeof ROLES)[number]) => roleToken(from, name) ?? (FAMILIES.CLIPTokenizer.roles[name] as string);
  const [bos, eos, unk] = [role("bos"), role("eos"), role("unk")];
  const ids = vocab as Map<string, number>;
  const missing = [bos, eos, unk].filter((token) => !ids.has(token) && !declared.some(({ content }) => content === token));
  refuse(
    path,
    missing.map((token) => `special token ${JSON.stringify(token)} is not in the vocabulary`),
  );
  const own = [...new Set([bos, eos, unk])]
    .filter((token) => ids.has(token))
    .map((token) => specialToken(ids.get(token) as number, token, token === bos));
  const added = [...declared, ...own.filter(({ content }) => !declared.some((entry) => entry.content === content))];
  return { path, json: clipTokenizerJson({ vocab: ids, merges: pairs }, { bos, eos, unk, added: added.sort((a, b) => a.id - b.id) }) };
}
