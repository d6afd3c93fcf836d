/**
 * The files of MiniGPT-4 (Zhu et al. 2023), which come from three projects: EVA's ViT, LAVIS's Q-Former, the projection that was trained, and a Llama
 * folder. `layout.json` says which file is which and how large its model is; the names inside become those of transformers.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { openCheckpoint, openWeights } from "../files/checkpoint";
import { fromFloat32, toFloat32 } from "../files/dtype";
import { readJson } from "../files/json";
import type { TensorSource } from "../files/safetensors";

const LAYOUT = "layout.json";

export type Layout = {
  vision: { [key: string]: unknown };
  qformer: { [key: string]: unknown };
  image: { mean: number[]; std: number[] };
  /** config.json of the Llama, and its folder. */
  language: { config: { [key: string]: unknown }; folder: string };
};

export type MiniGpt4Files = Layout & {
  /** All tensors by the names of transformers: `vision.`, `qformer.`, `query_tokens`, `llama_proj`, `llama.`. */
  tensors: Map<string, TensorSource>;
  close(): void;
};

/** Whether a folder is one of MiniGPT-4. */
export const isMiniGpt4 = (folder: string): boolean =>
  existsSync(join(folder, LAYOUT)) && readJson(join(folder, LAYOUT)).model_type === "minigpt4";

const KEYS = "model_type vision qformer projection language_model prompt_template image_placeholder image_mean image_std note".split(" ");

/** @throws naming the part of layout.json that is wrong, or the file that is missing */
export function openMiniGpt4(folder: string): MiniGpt4Files {
  const where = join(folder, LAYOUT);
  const layout = readJson(where);
  const strange = Object.keys(layout).filter((key) => !KEYS.includes(key));
  if (strange.length) throw new Error(`${where}: ${strange.join(", ")} not handled here; known: ${KEYS.join(", ")}`);
  const part = (name: string): { file: string; [key: string]: unknown } => {
    const found = layout[name] as { file?: unknown } | undefined;
    if (typeof found?.file !== "string" || !/^[\w.-]+$/.test(found.file))
      throw new Error(`${where}: ${name}.file is ${JSON.stringify(found?.file)}; expected the name of a weight file in the same folder`);
    return found as { file: string };
  };
  const { language_model: name } = layout;
  if (typeof name !== "string" || !/^[\w.-]+$/.test(name))
    throw new Error(`${where}: language_model is ${JSON.stringify(name)}; expected the name of a folder beside it`);
  const [vision, qformer, projection] = ["vision", "qformer", "projection"].map(part);
  const { file: _v, ...visionConfig } = vision;
  const { file: _q, ...qformerConfig } = qformer;
  const open: { close(): void }[] = [];
  const close = () => open.forEach((file) => file.close());
  try {
    const read = ({ file }: { file: string }) => {
      const opened = openWeights(join(folder, file));
      open.push(opened);
      return opened.tensors;
    };
    const language = openCheckpoint(join(folder, name));
    open.push(language);
    const tensors = new Map<string, TensorSource>();
    for (const [key, source] of evaNames(read(vision), Number(visionConfig.num_hidden_layers))) tensors.set(key, source);
    for (const [key, source] of lavisNames(read(qformer))) tensors.set(key, source);
    for (const [key, source] of read(projection)) if (key.startsWith("llama_proj.")) tensors.set(key, source);
    for (const [key, source] of language.tensors) tensors.set(`llama.${key}`, source);
    const image = { mean: layout.image_mean as number[], std: layout.image_std as number[] };
    return { vision: visionConfig, qformer: qformerConfig, image, language, tensors, close };
  } catch (error) {
    close();
    throw error;
  }
}

type Tensors = Iterable<[string, TensorSource]>;

const EVA: [RegExp, string][] = [
  [/^cls_token$/, "embeddings.class_embedding"],
  [/^pos_embed$/, "embeddings.position_embedding"],
  [/^patch_embed\.proj\./, "embeddings.patch_embedding."],
  [/^blocks\.(\d+)\./, "encoder.layers.$1."],
  [/\.attn\.proj\./, ".self_attn.projection."],
  [/\.attn\./, ".self_attn."],
  [/\.norm([12])\./, ".layer_norm$1."],
];

const renamed = (name: string, rules: [RegExp, string][]): string => rules.reduce((text, [from, to]) => text.replace(from, to), name);

/** EVA's ViT: its own head and the blocks behind the last one that is used are left out, q_bias and v_bias become one bias with zeros for the keys. */
function* evaNames(tensors: Map<string, TensorSource>, layers: number): Tensors {
  for (const [name, source] of tensors) {
    const block = /^blocks\.(\d+)\./.exec(name);
    if (/^(norm|fc_norm|head|mask_token|rope|rel_pos_bias)\b/.test(name) || (block && Number(block[1]) >= layers)) continue;
    if (name.endsWith(".attn.v_bias")) continue;
    const { [`${name.slice(0, -"q_bias".length)}v_bias`]: v } = name.endsWith(".attn.q_bias") ? Object.fromEntries(tensors) : {};
    const key = `vision.${renamed(name, EVA)}`;
    yield v ? [key.replace(/q_bias$/, "qkv.bias"), joinedBias(source, v)] : [key, source];
  }
}

/** [q bias | 0 | v bias] of [D] each. */
function joinedBias(q: TensorSource, v: TensorSource): TensorSource {
  const [D] = q.shape;
  const read = () => {
    const values = new Float32Array(3 * D);
    values.set(toFloat32(q));
    values.set(toFloat32(v), 2 * D);
    return fromFloat32(values, "F32");
  };
  return { name: `${q.name} and v_bias`, dtype: "F32", shape: [3 * D], byteLength: 12 * D, file: q.file, read };
}

const LAVIS: [RegExp, string][] = [
  [/^Qformer\.bert\.embeddings\.LayerNorm\./, "qformer.layernorm."],
  [/^Qformer\.bert\./, "qformer."],
  [/\.(attention|crossattention)\.self\./, ".$1.attention."],
  [/^ln_vision\./, "vision.post_layernorm."],
];

/** LAVIS's Q-Former, its queries, and the norm behind the ViT; what the file holds for another language model is left out. */
function* lavisNames(tensors: Map<string, TensorSource>): Tensors {
  for (const [name, source] of tensors)
    if (/^(query_tokens$|ln_vision\.|Qformer\.bert\.(?!embeddings\.position_ids))/.test(name)) yield [renamed(name, LAVIS), source];
}
