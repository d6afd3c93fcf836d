/** A checkpoint folder as published on the hub: config.json and the weights, in one file or in shards, safetensors or PyTorch's pickles. */
import fs from "node:fs";
import path from "node:path";
import type { TensorSource } from "./dtype";
import { readJson } from "./json";
import { openSafetensors } from "./safetensors";
import { openTorch } from "./torch";

export { readJson } from "./json";

export type Checkpoint = {
  folder: string;
  /** config.json, with the file's own keys. */
  config: Record<string, unknown>;
  /** All tensors of all shards, not yet read. */
  tensors: Map<string, TensorSource>;
  /** Closes the weight files; tensors cannot be read after it. */
  close(): void;
};

/** Where weights may stand, best first, as transformers looks for them. */
export const WEIGHT_FILES = [
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
] as const;
/** Misfits shown in one error. */
const SHOWN = 40;

type WeightFile = { tensors: Map<string, TensorSource>; close(): void };

/**
 * Opens a checkpoint folder. Nothing of it is executed: code that config.json names (`auto_map`) is ignored, with a notice.
 *
 * @throws Error naming the folder, what it holds and what is missing; for shards, every misfit with the index at once.
 */
export function openCheckpoint(folder: string): Checkpoint {
  const names = list(folder);
  if (!names.includes("config.json"))
    throw new Error(`${folder} is no checkpoint: config.json is missing. It holds ${names.slice(0, 20).join(", ") || "nothing"}.`);
  const config = readJson(path.join(folder, "config.json"));
  const weights = WEIGHT_FILES.find((name) => names.includes(name));
  if (!weights)
    throw new Error(`${folder} has no weights: expected ${WEIGHT_FILES.join(" or ")}; it holds ${names.slice(0, 20).join(", ")}.`);
  if ("auto_map" in config) {
    const classes = Object.values((config.auto_map as object | null) ?? {})
      .flat()
      .join(", ");
    console.warn(
      `${path.join(folder, "config.json")} names code to run (auto_map: ${classes.slice(0, 200)}). It is ignored: the model is built by this package alone.`,
    );
  }
  const file = path.join(folder, weights);
  return { folder, config, ...(weights.endsWith(".json") ? openShards(folder, file, names) : openWeights(file)) };
}

function list(folder: string): string[] {
  try {
    return fs.readdirSync(folder).sort();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reason =
      code === "ENOENT"
        ? "does not exist"
        : code === "ENOTDIR"
          ? "is a file; expected the folder that holds config.json"
          : `cannot be read: ${message}`;
    throw new Error(`${folder} ${reason}`, { cause: error });
  }
}

/** Opens one weight file by its ending: `.safetensors`, or `.bin`, `.pt`, `.pth` of PyTorch. */
export function openWeights(file: string): WeightFile {
  if (file.endsWith(".safetensors")) return openSafetensors(file);
  const { tensors, close } = openTorch(file);
  return { tensors, close };
}

/**
 * Tensor name -> shard, from an index file. Shards must be plain names of files in the same folder.
 * @throws Error naming the entries that are not.
 */
export function readIndex(file: string): Map<string, string> {
  const map = readJson(file).weight_map;
  if (typeof map !== "object" || map === null || Array.isArray(map))
    throw new Error(`${file}: "weight_map" is missing; expected { tensor: shard }`);
  const entries = Object.entries(map);
  const unsafe = entries.filter(
    ([, shard]) => typeof shard !== "string" || !/^[A-Za-z0-9][A-Za-z0-9._-]*\.(safetensors|bin|pt|pth)$/.test(shard),
  );
  refuse(
    file,
    unsafe.map(([name, shard]) => `"${name}" points at ${JSON.stringify(shard)}; expected the name of a weight file in the same folder`),
  );
  return new Map(entries as [string, string][]);
}

/** Opens all shards of an index; the index and the shards must name the same tensors, each once. */
function openShards(folder: string, index: string, names: string[]): WeightFile {
  const map = readIndex(index);
  const shards = [...new Set(map.values())].sort();
  const problems = shards.filter((shard) => !names.includes(shard)).map((shard) => `shard ${shard} is missing`);
  const stem = path.basename(index).split(".")[0];
  const others = names.filter(
    (name) => new RegExp(`^${stem}-\\d+-of-\\d+\\.`).test(name) && path.extname(name) === path.extname(shards[0] ?? ""),
  );
  problems.push(...others.filter((name) => !shards.includes(name)).map((name) => `shard ${name} is in the folder, but not in the index`));
  refuse(index, problems);
  const files = new Map<string, WeightFile>();
  const close = () => files.forEach((file) => file.close());
  try {
    for (const shard of shards) files.set(shard, openWeights(path.join(folder, shard)));
    return { tensors: collect(index, map, files), close };
  } catch (error) {
    close();
    throw error;
  }
}

function collect(index: string, map: Map<string, string>, files: Map<string, WeightFile>): Map<string, TensorSource> {
  const problems: string[] = [];
  const homes = new Map<string, string[]>();
  for (const [shard, { tensors }] of files) for (const name of tensors.keys()) homes.set(name, [...(homes.get(name) ?? []), shard]);
  for (const [name, shards] of homes) {
    if (shards.length > 1) problems.push(`"${name}" stands in several shards: ${shards.join(", ")}`);
    if (!map.has(name)) problems.push(`"${name}" stands in ${shards.join(", ")}, but not in the index`);
  }
  const tensors = new Map<string, TensorSource>();
  for (const [name, shard] of map) {
    const tensor = files.get(shard)?.tensors.get(name);
    if (tensor) tensors.set(name, tensor);
    else problems.push(`"${name}" should stand in ${shard}, but does not`);
  }
  refuse(index, problems);
  return tensors;
}

function refuse(index: string, problems: string[]): void {
  if (problems.length === 0) return;
  const more = problems.length > SHOWN ? [`… and ${problems.length - SHOWN} more`] : [];
  throw new Error([`${index} and its shards do not fit together:`, ...problems.slice(0, SHOWN), ...more].join("\n  "));
}
