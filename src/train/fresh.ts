/** New checkpoints to train from nothing. */
import { join } from "node:path";
import { normal, random } from "../data/random";
import { writeFileAtomic } from "../files/atomic";
import { fromFloat32, saveSafetensors } from "../files/safetensors";
import { clipConfig, clipSpec } from "../models/clip";
import { leaves, type WeightSpec } from "../nn/spec";

/** Writes a CLIP checkpoint with random weights. The tokenizer's files must stand in the folder already (`trainBpe`). */
export async function freshClip(folder: string, raw: { [key: string]: unknown }, { seed = 0 } = {}): Promise<void> {
  const config = clipConfig(raw);
  await freshWeights(folder, clipSpec(config), { seed, scalars: { logit_scale: config.logit_scale_init_value } });
  const { image_size: size } = config.vision_config;
  await writeFileAtomic(join(folder, "config.json"), json(raw));
  await writeFileAtomic(join(folder, "preprocessor_config.json"), json(preprocessor(size)));
}

/**
 * Writes model.safetensors with random weights: matrices normal with variance 1 / (2 · inputs), tables with deviation 0.02, norms and layer scales 1,
 * biases 0, scalars as given.
 */
export async function freshWeights(
  folder: string,
  spec: unknown,
  { seed = 0, scalars = {} }: { seed?: number; scalars?: { [name: string]: number } } = {},
): Promise<void> {
  const next = random(seed);
  const tensors = leaves(spec).map(({ spec }) => ({
    name: spec.name,
    dtype: "F32" as const,
    shape: spec.shape,
    data: fromFloat32(
      firstValues(spec, scalars, () => normal(next)),
      "F32",
    ),
  }));
  await saveSafetensors(join(folder, "model.safetensors"), tensors, { format: "pt" });
}

/** Tables, whose rows are looked up or added. */
const TABLE = /embedding\.weight$|class_embedding$|embed_tokens\.weight$|cls_token$|position_embeddings$/;

const json = (x: unknown) => `${JSON.stringify(x, null, 2)}\n`;

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
