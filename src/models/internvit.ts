/**
 * InternViT, InternVL's picture tower (Chen et al. 2024): a pre-norm ViT whose two sums are scaled per channel (layer scale, Touvron et al. 2021), with
 * queries and keys normalised in the 6B model. Numbers as transformers/models/internvl/modeling_internvl.py; names as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { asBlock } from "../nn/block";
import { activationName, add, attention, layerNorm, linearSpec, mlp, normSpec, patchEmbed, projectionSpec, scaleBy } from "../nn/layers";
import { patchKernel, type Params, repeat, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";

export type InternVitConfig = {
  hidden_size: number;
  intermediate_size: number;
  num_hidden_layers: number;
  num_attention_heads: number;
  num_channels: number;
  image_size: number;
  patch_size: number;
  hidden_act: string;
  layer_norm_eps: number;
  attention_bias: boolean;
};

const blockSpec = (name: string, { hidden_size: D, intermediate_size: F, attention_bias }: InternVitConfig) => {
  const qkv = (part: string) =>
    (attention_bias ? linearSpec : projectionSpec)(`${name}.attention.${part}`, D, D) as ReturnType<typeof projectionSpec>;
  return {
    ln1: normSpec(`${name}.layernorm_before`, D),
    attn: { q: qkv("q_proj"), k: qkv("k_proj"), v: qkv("v_proj"), out: linearSpec(`${name}.attention.projection_layer`, D, D) },
    scale1: w(`${name}.lambda_1`, [D]),
    ln2: normSpec(`${name}.layernorm_after`, D),
    mlp: { fc1: linearSpec(`${name}.mlp.fc1`, D, F), fc2: linearSpec(`${name}.mlp.fc2`, F, D) },
    scale2: w(`${name}.lambda_2`, [D]),
  };
};

/** Every weight by its name in the file. prefix: "vision_tower.". */
export const internVitSpec = (c: InternVitConfig, prefix: string) => ({
  cls: w(`${prefix}embeddings.cls_token`, [1, 1, c.hidden_size]),
  patch: {
    weight: patchKernel(`${prefix}embeddings.patch_embeddings.projection.weight`, [c.hidden_size, c.num_channels, c.patch_size]),
    bias: w(`${prefix}embeddings.patch_embeddings.projection.bias`, [c.hidden_size]),
  },
  position: w(`${prefix}embeddings.position_embeddings`, [1, (c.image_size / c.patch_size) ** 2 + 1, c.hidden_size]),
  blocks: repeat(c.num_hidden_layers, (i) => blockSpec(`${prefix}encoder.layer.${i}`, c)),
});
export type InternVit = Params<ReturnType<typeof internVitSpec>>;
type Block = InternVit["blocks"][number];

function block(p: Block, c: InternVitConfig, x: tf.Tensor3D, tap: Tap): tf.Tensor3D {
  const { num_attention_heads: heads, layer_norm_eps: eps } = c;
  x = tap("resid_pre", x);
  const attn = attention(p.attn, layerNorm(p.ln1, x, eps), { heads, tap: at(tap, "attn") });
  x = tap(
    "resid_mid",
    add(x, "attn_out", tap, (onto) => scaleBy(p.scale1, attn, onto)),
  );
  const ff = mlp(p.mlp, layerNorm(p.ln2, x, eps), activationName(c.hidden_act), at(tap, "mlp"));
  return tap(
    "resid_post",
    add(x, "mlp_out", tap, (onto) => scaleBy(p.scale2, ff, onto)),
  );
}

/**
 * The residual stream behind the last block, class token first. pixels: [B, S, S, 3], mean and std applied -> [B, 1 + (S / P)², D]
 * Taps: `vision.patch_embed`, `vision.embed`, `vision.blocks.N.…` as CLIP's.
 */
export function internVit(p: InternVit, c: InternVitConfig, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor3D {
  return tf.tidy(() => {
    const t = at(tap, "vision");
    const patches = t("patch_embed", patchEmbed(p.patch, pixels, c.patch_size)); //                   [B, N-1, D]
    const cls = p.cls.tile([pixels.shape[0], 1, 1]); //                                               [B, 1, D]
    let x = t("embed", tf.concat([cls, patches], 1).add(p.position) as tf.Tensor3D); //               [B, N, D]
    p.blocks.forEach((layer, i) => {
      const watch = at(t, `blocks.${i}`);
      x = asBlock(layer, { x }, ({ x }) => block(layer, c, x, watch), { tap: watch });
    });
    return x;
  });
}
