/** New checkpoints to train from nothing. */
import { join } from "node:path";
import { normal, random } from "../data/random";
import { tf } from "../engine/tf";
import { writeFileAtomic } from "../files/atomic";
import { jsonText } from "../files/json";
import { fromFloat32, saveSafetensors } from "../files/safetensors";
import { clipConfig, clipSpec } from "../models/clip";
import { leaves, mapLeaves, type Params, type WeightSpec } from "../nn/spec";

/** Writes a CLIP checkpoint with random weights. The tokenizer's files must stand in the folder already (`trainBpe`). */
export async function freshClip(folder: string, raw: { [key: string]: unknown }, { seed = 0 } = {}): Promise<void> {
  const config = clipConfig(raw);
  await freshWeights(folder, clipSpec(config), { seed, scalars: { logit_scale: config.logit_scale_init_value } });
  const { image_size: size } = config.vision_config;
  await writeFileAtomic(join(folder, "config.json"), jsonText(raw));
  await writeFileAtomic(join(folder, "preprocessor_config.json"), jsonText(preprocessor(size)));
}

/**
 * Writes model.safetensors with random weights: matrices normal with variance 1 / (2 · inputs), tables with deviation 0.02, norms and layer scales 1,
 * biases 0, scalars and known weights as given.
 */
export async function freshWeights(
  folder: string,
  spec: unknown,
  { seed = 0, scalars = {}, given = {} }: FreshOptions = {},
): Promise<void> {
  const next = random(seed);
  const tensors = leaves(spec).map(({ spec }) => ({
    name: spec.name,
    dtype: "F32" as const,
    shape: spec.shape,
    data: fromFloat32(given[spec.name] ?? firstValues(spec, scalars, () => normal(next)), "F32"),
  }));
  await saveSafetensors(join(folder, "model.safetensors"), tensors, { format: "pt" });
}

/** The same numbers as a tree of variables, without a file. */
export function freshVariables<S>(
  spec: S,
  seed: number,
  given: FreshOptions["given"] = {},
): { params: Params<S>; variables: tf.Variable[] } {
  const next = random(seed);
  const variables: tf.Variable[] = [];
  const params = mapLeaves(spec, (leaf) => {
    const first = tf.tensor(given[leaf.name] ?? firstValues(leaf, {}, () => normal(next)), leaf.view ?? leaf.shape);
    const variable = tf.variable(first, true);
    first.dispose();
    variables.push(variable);
    return variable;
  });
  return { params: params as Params<S>, variables };
}

export type FreshOptions = {
  seed?: number;
  scalars?: { [name: string]: number };
  /** Weights that are known, by their names in the file: those of a tower that stays as it is. */
  given?: { [name: string]: Float32Array };
};

/** Tables, whose rows are looked up or added. */
const TABLE = /embedding\.weight$|class_embedding$|embed_tokens\.weight$|cls_token$|position_embeddings$/;

function firstValues({ name, shape }: WeightSpec, scalars: { [name: string]: number }, draw: () => number): Float32Array {
  const count = shape.reduce((a, b) => a * b, 1);
  if (name in scalars) return Float32Array.of(scalars[name]);
  if (name.endsWith(".bias")) return new Float32Array(count);
  if (shape.length === 1 && /\.weight$|\.lambda_[12]$/.test(name)) return new Float32Array(count).fill(1);
  const deviation = TABLE.test(name) && !name.includes("patch") ? 0.02 : Math.sqrt(0.5 / (count / shape[0]));
  return Float32Array.from({ length: count }, () => deviation * draw());
}

const preprocessor = (size: number) => ({
  image_processor_type: "CLIPImageProcessor",
  do_resize: true,
  size: { shortest_edge: size },
  resample: 3,
  do_center_crop: true,
  crop_size: { height: size, width: size },
  do_rescale: true,
  rescale_factor: 1 / 255,
  do_normalize: true,
  image_mean: [0.48145466, 0.4578275, 0.40821073],
  image_std: [0.26862954, 0.26130258, 0.27577711],
  do_convert_rgb: true,
});

/** `text_config` of a small Qwen2 with tied embeddings, without its sizes. end, pad: token ids */
export const smallQwen2 = ({
  end,
  pad,
  contextLength,
  vocabSize,
}: {
  end: number;
  pad: number;
  contextLength: number;
  vocabSize: number;
}) => ({
  model_type: "qwen2",
  bos_token_id: null,
  eos_token_id: end,
  pad_token_id: pad,
  hidden_act: "silu",
  max_position_embeddings: contextLength,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  tie_word_embeddings: true,
  use_sliding_window: false,
  vocab_size: vocabSize,
});
