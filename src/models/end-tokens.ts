/** The ids that end an answer, as a checkpoint's files say. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { readJson } from "../files/json";

const FILE = "generation_config.json";

/**
 * `eos_token_id` of generation_config.json, or where that file or the key is missing of the first part of config.json that has one.
 *
 * @param parts config.json and its parts, the one that counts first
 * @returns none where nothing says: then an answer ends at its longest length
 * @throws naming the file when it is neither an id nor a list of ids
 */
export function endTokens(folder: string, ...parts: unknown[]): number[] {
  const file = join(folder, FILE);
  const sources = [...(existsSync(file) ? [{ where: file, value: readJson(file).eos_token_id }] : []), ...parts.map(inConfig)];
  const found = sources.find(({ value }) => value !== undefined && value !== null);
  if (!found) return [];
  const ids = Array.isArray(found.value) ? found.value : [found.value];
  if (!ids.every((id) => Number.isInteger(id) && id >= 0))
    throw new Error(`${found.where}: eos_token_id is ${JSON.stringify(found.value)}; expected a token id or a list of them`);
  return ids as number[];
}

const inConfig = (part: unknown) => ({ where: "config.json", value: (part as { eos_token_id?: unknown } | undefined)?.eos_token_id });
