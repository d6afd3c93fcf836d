/** New checkpoints to train from nothing. */
import { join } from "node:path";
import { normal, random } from "../data/random";
import { writeFileAtomic } from "../files/atomic";
import { fromFloat32, saveSafetensors } from "../files/safetensors";
import { clipConfig, clipSpec } from "../models/clip";
import { leaves, type WeightSpec } from "../nn/spec";

/**
 * Writes a CLIP checkpoint with random weights: matrices normal with variance 1 / (2 · inputs), tables with deviation 0.02, norms 1, biases 0,
 * logit_scale from the config. The tokenizer's files must stand in the folder already (`trainBpe`).
 */
export async function freshClip(folder: string, raw: { [key: string]: unknown }, { seed = 0 } = {}): Promise<void> {
  const config = clipConfig(raw);
  const next = random(seed);
  const tensors = leaves(clipSpec(config)).map(({ spec }) => ({
    name: spec.name,
    dtype: "F32" as const,
    shape: spec.shape,
    data: fromFloat32(
      firstValues(spec, config.logit_scale_init_value, () => normal(next)),
      "F32",
    ),
  }));
  await saveSafetensors(join(folder, "model.safetensors"), tensors, { format: "pt" });
  const { image_size: size } = config.vision_config;
  await writeFileAtomic(join(folder, "config.json"), json(raw));
  await writeFileAtomic(join(folder, "preprocessor_config.json"), json(preprocessor(size)));
}

const json = (x: unknown) => `${JSON.stringify(x, null, 2)}\n`;

function firstValues({ name, shape }: WeightSpec, logitScale: number, draw: () => number): Float32Array {
  const count = shape.reduce((a, b) => a * b, 1);
  if (name === "logit_scale") return Float32Array.of(logitScale);
  if (name.endsWith(".bias")) return new Float32Array(count);
  if (shape.length === 1 && name.endsWith(".weight")) return new Float32Array(count).fill(1);
  const deviation =
    /embedding\.weight$|class_embedding$/.test(name) && !name.includes("patch") ? 0.02 : Math.sqrt(0.5 / (count / shape[0]));
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
