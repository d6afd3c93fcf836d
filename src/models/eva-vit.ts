/**
 * The picture tower of BLIP-2 and InstructBLIP, and with other defaults of BLIP and ALBEF: a pre-norm ViT in the manner of EVA-CLIP (Sun et al. 2023),
 * whose queries, keys and values are one product. Numbers as transformers/models/blip_2/modeling_blip_2.py (Blip2VisionModel); names of weights and config
 * keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { asBlock } from "../nn/block";
import {
  activationName,
  activations,
  add,
  fusedAttention,
  layerNorm,
  linearSpec,
  mlp,
  normSpec,
  patchEmbed,
  projectionSpec,
} from "../nn/layers";
import { patchKernel, type Params, repeat, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";

const DEFAULTS = {
  hidden_size: 1408,
  intermediate_size: 6144,
  num_hidden_layers: 39,
  num_attention_heads: 16,
  image_size: 224,
  patch_size: 14,
  hidden_act: "gelu",
  layer_norm_eps: 1e-6,
  qkv_bias: true,
};
export type EvaVitConfig = typeof DEFAULTS;

/** A `vision_config` -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export function evaVitConfig(raw: unknown, where = "config.json: vision_config", unused: readonly string[] = []): EvaVitConfig {
  const config = readConfig(raw, DEFAULTS, where, unused) as EvaVitConfig;
  checkHeads(where, config);
  checkKnown(`${where}: hidden_act`, config.hidden_act, Object.keys(activations));
  return config;
}

const blockSpec = (name: string, { hidden_size: D, intermediate_size: F, qkv_bias }: EvaVitConfig) => ({
  ln1: normSpec(`${name}.layer_norm1`, D),
  attn: {
    qkv: (qkv_bias ? linearSpec : projectionSpec)(`${name}.self_attn.qkv`, D, 3 * D) as ReturnType<typeof projectionSpec>,
    out: linearSpec(`${name}.self_attn.projection`, D, D),
  },
  ln2: normSpec(`${name}.layer_norm2`, D),
  mlp: { fc1: linearSpec(`${name}.mlp.fc1`, D, F), fc2: linearSpec(`${name}.mlp.fc2`, F, D) },
});

/** Every weight by its name in the file. prefix: "vision_model.". */
export const evaVitSpec = (c: EvaVitConfig, prefix = "vision_model.") => ({
  cls: w(`${prefix}embeddings.class_embedding`, [1, 1, c.hidden_size]),
  patch: {
    weight: patchKernel(`${prefix}embeddings.patch_embedding.weight`, [c.hidden_size, 3, c.patch_size]),
    bias: w(`${prefix}embeddings.patch_embedding.bias`, [c.hidden_size]),
  },
  position: w(`${prefix}embeddings.position_embedding`, [1, Math.floor(c.image_size / c.patch_size) ** 2 + 1, c.hidden_size]),
  blocks: repeat(c.num_hidden_layers, (i) => blockSpec(`${prefix}encoder.layers.${i}`, c)),
  lnPost: normSpec(`${prefix}post_layernorm`, c.hidden_size),
});
export type EvaVit = Params<ReturnType<typeof evaVitSpec>>;
type Block = EvaVit["blocks"][number];

/** Pre-norm block (Dosovitskiy et al. 2021, eq. 2-3). x: [B, N, D] -> [B, N, D] */
function block(p: Block, c: EvaVitConfig, x: tf.Tensor3D, tap: Tap): tf.Tensor3D {
  const { num_attention_heads: heads, layer_norm_eps: eps } = c;
  x = tap("resid_pre", x);
  x = tap(
    "resid_mid",
    add(x, "attn_out", tap, (onto) => fusedAttention(p.attn, layerNorm(p.ln1, x, eps), { heads, tap: at(tap, "attn"), onto })),
  );
  return tap(
    "resid_post",
    add(x, "mlp_out", tap, (onto) => mlp(p.mlp, layerNorm(p.ln2, x, eps), activationName(c.hidden_act), at(tap, "mlp"), onto)),
  );
}

/**
 * What the Q-Former reads: the last block's states behind the final norm, class token first. pixels: [B, S, S, 3], mean and std applied ->
 * [B, 1 + (S / P)², D]
 * Taps: `vision.patch_embed`, `vision.embed`, `vision.blocks.N.…` as CLIP's, `vision.final`.
 */
export function evaVit(p: EvaVit, c: EvaVitConfig, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor3D {
  return tf.tidy(() => {
    const t = at(tap, "vision");
    const patches = t("patch_embed", patchEmbed(p.patch, pixels, c.patch_size)); //                   [B, N-1, D]
    const cls = p.cls.tile([pixels.shape[0], 1, 1]); //                                               [B, 1, D]
    let x = t("embed", tf.concat([cls, patches], 1).add(p.position) as tf.Tensor3D); //               [B, N, D]
    p.blocks.forEach((layer, i) => {
      const watch = at(t, `blocks.${i}`);
      x = asBlock(layer, { x }, ({ x }) => block(layer, c, x, watch), { tap: watch });
    });
    return t("final", layerNorm(p.lnPost, x, c.layer_norm_eps));
  });
}
