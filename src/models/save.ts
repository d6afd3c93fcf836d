/** A model as a folder in the Hugging Face layout, which transformers and `load` open. */
import { copyFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { writeFileAtomic } from "../files/atomic";
import { readJson } from "../files/json";
import { fromFloat32, saveSafetensors, type TensorToSave } from "../files/safetensors";
import type { Adaptable } from "../nn/lora";
import { type FileDtype, weightValues } from "../nn/spec";

/** What a checkpoint needs besides its weights, copied as it is where the model's own folder has it. */
const COMPANIONS = [
  "preprocessor_config.json",
  "processor_config.json",
  "video_preprocessor_config.json",
  "chat_template.jinja",
  "chat_template.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "vocab.json",
  "merges.txt",
  "generation_config.json",
];

/**
 * Writes config.json, model.safetensors, tokenizer and preprocessor. An attached adapter is not written: merge it first (`mergeLora`).
 *
 * @param dtype of the file; bfloat16 halves it. Weights in int8 or NF4 are written as the numbers that they stand for.
 * @throws before anything is written when an adapter is attached
 */
export async function saveModel(model: Adaptable, folder: string, { dtype = "float32" }: { dtype?: FileDtype } = {}): Promise<void> {
  if (
    JSON.stringify(model.params, (key, value) => (key === "lora" && value ? "attached" : value?.dataId ? 0 : value)).includes('"attached"')
  )
    throw new Error("saveModel: an adapter is attached, and would be lost; save it with saveAdapter, or merge it first with mergeLora");
  mkdirSync(folder, { recursive: true });
  const stored = dtype === "bfloat16" ? "BF16" : "F32";
  const tensors: TensorToSave[] = [];
  for await (const { name, shape, values } of weightValues(model.spec, model.params))
    tensors.push({ name, dtype: stored, shape, data: fromFloat32(values, stored) });
  await saveSafetensors(join(folder, "model.safetensors"), tensors, { format: "pt" });
  for (const name of COMPANIONS) {
    const from = join(model.folder, name);
    if (existsSync(from) && model.folder !== folder) copyFileSync(from, join(folder, name));
  }
  await writeFileAtomic(join(folder, "config.json"), configText(model.folder, dtype));
}

/**
 * The folder's config.json with another dtype. Edited as text: JavaScript would write 1.0 as 1, and transformers refuses a whole number where a
 * config's field is a float.
 */
function configText(folder: string, dtype: FileDtype): string {
  const text = readFileSync(join(folder, "config.json"), "utf8");
  const config = readJson(join(folder, "config.json"));
  const edited = text.replace(/("(?:torch_)?dtype"\s*:\s*)"\w+"/g, `$1"${dtype}"`);
  return "torch_dtype" in config || "dtype" in config ? edited : edited.replace("{", `{\n  "torch_dtype": "${dtype}",`);
}
