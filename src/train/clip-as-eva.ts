/**
 * CLIP's picture tower in the layout of BLIP-2's, for a Q-Former to read. CLIP has a norm before its first block, BLIP-2's tower none: a block of its own
 * stands for it. Its attention is zero, and its feed-forward part passes the normed input on as K·(act(z) - act(-z)) = K·z, which holds for GELU and quick
 * GELU (x·Φ(x) and x·σ(1.702 x): Φ(x) + Φ(-x) = 1). All that the other blocks add is K times as large too, and their norms take K away again; beside it
 * what had not been normed is 1 / K of the stream.
 */
import { join } from "node:path";
import { openCheckpoint } from "../files/checkpoint";
import { toFloat32 } from "../files/safetensors";
import { type ClipConfig, clipConfig } from "../models/clip";

const K = 1024;

export type EvaTower = {
  /** A `vision_config` of BLIP-2. */
  config: { [key: string]: unknown };
  /** The weights by their names in BLIP-2's files. */
  weights: { [name: string]: Float32Array };
};

/**
 * The tower of a CLIP checkpoint: every token behind CLIP's last norm, which CLIP itself applies to the class token alone.
 *
 * @param folder a checkpoint whose feed-forward parts are at least twice as wide as the tower
 */
export function clipAsEva(folder: string): EvaTower {
  const checkpoint = openCheckpoint(folder);
  try {
    const { vision_config: c } = clipConfig(checkpoint.config);
    const read = (name: string) => {
      const source = checkpoint.tensors.get(`vision_model.${name}`);
      if (!source) throw new Error(`${join(folder, "model.safetensors")} holds no vision_model.${name}`);
      return toFloat32(source);
    };
    return { config: configOf(c), weights: weightsOf(c, read) };
  } finally {
    checkpoint.close();
  }
}

const configOf = (c: ClipConfig["vision_config"]) => ({
  model_type: "blip_2_vision_model",
  hidden_size: c.hidden_size,
  intermediate_size: c.intermediate_size,
  num_hidden_layers: c.num_hidden_layers + 1, // the first one is the norm
  num_attention_heads: c.num_attention_heads,
  image_size: c.image_size,
  patch_size: c.patch_size,
  hidden_act: c.hidden_act,
  layer_norm_eps: c.layer_norm_eps,
  qkv_bias: true,
});

function weightsOf(c: ClipConfig["vision_config"], read: (name: string) => Float32Array): EvaTower["weights"] {
  const { hidden_size: D, intermediate_size: F } = c;
  if (F < 2 * D) throw new RangeError(`clipAsEva: intermediate_size is ${F}; the norm's block needs ${2 * D}`);
  const weights: EvaTower["weights"] = {
    "embeddings.class_embedding": read("embeddings.class_embedding"),
    "embeddings.patch_embedding.weight": read("embeddings.patch_embedding.weight"),
    "embeddings.patch_embedding.bias": new Float32Array(D),
    "embeddings.position_embedding": read("embeddings.position_embedding.weight"),
    "post_layernorm.weight": read("post_layernorm.weight"),
    "post_layernorm.bias": read("post_layernorm.bias"),
    ...normBlock(D, F, read),
  };
  for (let i = 0; i < c.num_hidden_layers; i++) {
    const [from, to] = [`encoder.layers.${i}`, `encoder.layers.${i + 1}`];
    for (const part of ["weight", "bias"]) {
      for (const name of ["layer_norm1", "layer_norm2", "mlp.fc1"]) weights[`${to}.${name}.${part}`] = read(`${from}.${name}.${part}`);
      weights[`${to}.self_attn.qkv.${part}`] = joined(["q", "k", "v"].map((name) => read(`${from}.self_attn.${name}_proj.${part}`)));
      weights[`${to}.self_attn.projection.${part}`] = read(`${from}.self_attn.out_proj.${part}`).map((x) => K * x);
      weights[`${to}.mlp.fc2.${part}`] = read(`${from}.mlp.fc2.${part}`).map((x) => K * x);
    }
  }
  return Object.fromEntries(Object.entries(weights).map(([name, values]) => [`vision_model.${name}`, values]));
}

/** The block that is a norm. */
function normBlock(D: number, F: number, read: (name: string) => Float32Array): EvaTower["weights"] {
  const [fc1, fc2] = [new Float32Array(F * D), new Float32Array(D * F)];
  for (let i = 0; i < D; i++) {
    fc1[i * D + i] = 1;
    fc1[(D + i) * D + i] = -1;
    fc2[i * F + i] = K;
    fc2[i * F + D + i] = -K;
  }
  const parts = {
    "layer_norm1.weight": new Float32Array(D).fill(1),
    "layer_norm1.bias": new Float32Array(D),
    "self_attn.qkv.weight": new Float32Array(3 * D * D),
    "self_attn.qkv.bias": new Float32Array(3 * D),
    "self_attn.projection.weight": new Float32Array(D * D),
    "self_attn.projection.bias": new Float32Array(D),
    "layer_norm2.weight": read("pre_layrnorm.weight"),
    "layer_norm2.bias": read("pre_layrnorm.bias"),
    "mlp.fc1.weight": fc1,
    "mlp.fc1.bias": new Float32Array(F),
    "mlp.fc2.weight": fc2,
    "mlp.fc2.bias": new Float32Array(D),
  };
  return Object.fromEntries(Object.entries(parts).map(([name, values]) => [`encoder.layers.0.${name}`, values]));
}

function joined(parts: Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
