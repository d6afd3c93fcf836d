/** The small files around a vocabulary: `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { readJson } from "../files/json";
import type { AddedToken } from "./clip";
import { refuse } from "./tokenizer-check";

export type Json = Record<string, unknown>;

/** A checkpoint's folder with its small files, `{}` where one is missing. */
export type Folder = { folder: string; config: Json; specials: Json; added: Json; modelType: string };

export const ROLES = ["bos", "eos", "pad", "unk", "sep", "cls", "mask"] as const;
export type Role = (typeof ROLES)[number];

export function openFolder(folder: string): Folder {
  const optional = (name: string): Json => (existsSync(join(folder, name)) ? readJson(join(folder, name)) : {});
  return {
    folder,
    config: optional("tokenizer_config.json"),
    specials: optional("special_tokens_map.json"),
    added: optional("added_tokens.json"),
    modelType: String(optional("config.json").model_type ?? ""),
  };
}

/** Whether all these files are there. */
export const holds = ({ folder }: Folder, ...names: string[]): boolean => names.every((name) => existsSync(join(folder, name)));

/** The class that `tokenizer_config.json` names, without the `Fast` that older files add. */
export const className = ({ config }: Folder): string => String(config.tokenizer_class ?? "").replace(/Fast$/, "");

/** A special token is written as text, or as an object with its flags. */
export function contentOf(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  const content = (value as Json | null)?.content;
  return typeof content === "string" ? content : undefined;
}

/** The special token of a role: tokenizer_config.json first, then special_tokens_map.json. */
export const roleToken = ({ config, specials }: Folder, role: string): string | undefined =>
  contentOf(config[`${role}_token`]) ?? contentOf(specials[`${role}_token`]);

/** The tokens that tokenizer_config.json declares by id, or else added_tokens.json. */
export function declaredTokens(from: Folder): AddedToken[] {
  const { config, folder, added } = from;
  if (config.added_tokens_decoder === undefined) return Object.entries(added).map(([content, id]) => plainToken(from, content, id));
  return Object.entries(config.added_tokens_decoder as Record<string, Partial<AddedToken>>).map(([id, entry]) => {
    if (!/^\d+$/.test(id) || typeof entry?.content !== "string")
      refuse(join(folder, "tokenizer_config.json"), [`added_tokens_decoder[${JSON.stringify(id)}]: expected an id and { content }`]);
    const { content, single_word = false, lstrip = false, rstrip = false, special = false } = entry;
    return { id: Number(id), content: content as string, single_word, lstrip, rstrip, normalized: entry.normalized ?? !special, special };
  });
}

/** added_tokens.json says only the id; special are those that the other files list. */
function plainToken({ config, specials, folder }: Folder, content: string, id: unknown): AddedToken {
  if (!Number.isInteger(id))
    refuse(join(folder, "added_tokens.json"), [`${JSON.stringify(content)}: ${JSON.stringify(id)}, expected an id`]);
  const listed = [config, specials].flatMap((file) => [
    ...((file.additional_special_tokens as unknown[] | undefined) ?? []).map(contentOf),
    ...ROLES.map((role) => contentOf(file[`${role}_token`])),
  ]);
  const special = listed.includes(content);
  return { id: id as number, content, single_word: false, lstrip: false, rstrip: false, normalized: !special, special };
}
