/** The names under which LLaVA's weights are found: published files, transformers 5 and its modules spell them differently. */
import type { TensorSource } from "../files/dtype";

/** Prefixes of transformers' modules since 4.52, and of the published files. */
const MODULES: readonly [module: string, file: string][] = [
  ["model.language_model.", "language_model.model."],
  ["model.vision_tower.", "vision_tower.vision_model."],
  ["model.multi_modal_projector.", "multi_modal_projector."],
  ["model.image_newline", "image_newline"],
  ["lm_head", "language_model.lm_head"],
];

/** What a module of a published file is called in transformers 5, and so in PEFT's adapters. */
export function llavaModule(name: string): string {
  for (const [module, file] of MODULES) if (name.startsWith(file)) return module + name.slice(file.length);
  return name;
}

/** The published name of a weight in any of the spellings. */
export function llavaPublished(name: string): string {
  for (const [module, file] of MODULES) if (name.startsWith(module)) return file + name.slice(module.length).replace(/^vision_model\./, "");
  return name.replace(/^vision_tower\.(?!vision_model\.)/, "vision_tower.vision_model.");
}

/**
 * A file's tensors by their published names.
 *
 * @throws Error naming the weights that stand in the file twice, in two spellings
 */
export function publishedTensors(tensors: Map<string, TensorSource>, where: string): Map<string, TensorSource> {
  const named = new Map<string, TensorSource>();
  const twice: string[] = [];
  for (const [name, source] of tensors) {
    const published = llavaPublished(name);
    if (named.has(published)) twice.push(`${name} is also there as ${named.get(published)!.name}`);
    named.set(published, source);
  }
  if (twice.length) throw new Error(`${where} holds weights twice: ${twice.slice(0, 5).join("; ")}`);
  return named;
}
