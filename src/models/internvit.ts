/**
 * InternViT, InternVL's picture tower (Chen et al. 2024): a pre-norm ViT whose two sums are scaled per channel (layer scale, Touvron et al. 2021), with
 * RMS norms and normalised queries and keys in the 6B model. Numbers as transformers/models/internvl/modeling_internvl.py; names as in its checkpoints
 * and in those of the original repository, whose queries, keys and values are one product.
 */
import { tf } from "../engine/tf";
import { asBlock } from "../nn/block";
import {
  activationName,
  activations,
  add,
  type Attention,
  attention,
  type FusedAttention,
  fusedAttention,
  layerNorm,
  linearSpec,
  mlp,
  type Norm,
  normSpec,
  patchEmbed,
  projectionSpec,
  type RmsNorm,
  rmsNorm,
  rmsNormSpec,
  scaleBy,
} from "../nn/layers";
import { resizePositions } from "../nn/position-table";
import { patchKernel, type Params, repeat, w } from "../nn/spec";
import { at, noTap, type Tap, watched } from "../nn/tap";
import { checkHeads, checkKnown } from "./config";

export type InternVitConfig = {
  hidden_size: number;
  intermediate_size: number;
  num_hidden_layers: number;
  num_attention_heads: number;
  num_channels: number;
  /** That the position table is for. */
  image_size: number;
  patch_size: number;
  hidden_act: string;
  layer_norm_eps: number;
  /** Of the norms of queries and keys. */
  qk_norm_eps: number;
  attention_bias: boolean;
  norm_type: string;
  use_qk_norm: boolean;
  /** A norm behind the last block. */
  final_norm: boolean;
};

/** How the weights are called, and whether queries, keys and values are one. */
type Names = {
  cls: string;
  patch: string;
  position: string;
  layer: string;
  ln1: string;
  ln2: string;
  attn: string;
  out: string;
  scale1: string;
  scale2: string;
  fused: boolean;
};

const LAYOUTS = {
  transformers: {
    cls: "embeddings.cls_token",
    patch: "embeddings.patch_embeddings.projection",
    position: "embeddings.position_embeddings",
    layer: "encoder.layer",
    ln1: "layernorm_before",
    ln2: "layernorm_after",
    attn: "attention",
    out: "projection_layer",
    scale1: "lambda_1",
    scale2: "lambda_2",
    fused: false,
  },
  original: {
    cls: "embeddings.class_embedding",
    patch: "embeddings.patch_embedding",
    position: "embeddings.position_embedding",
    layer: "encoder.layers",
    ln1: "norm1",
    ln2: "norm2",
    attn: "attn",
    out: "proj",
    scale1: "ls1",
    scale2: "ls2",
    fused: true,
  },
} satisfies { [layout: string]: Names };
export type InternVitLayout = keyof typeof LAYOUTS;

/** @throws naming what the tower has not */
export function checkInternVit(where: string, c: InternVitConfig): void {
  checkHeads(where, c);
  checkKnown(`${where}: norm_type`, c.norm_type, ["layer_norm", "rms_norm"]);
  checkKnown(`${where}: hidden_act`, c.hidden_act, Object.keys(activations));
}

/** Either norm: a layer norm has a bias. */
type EitherNorm = RmsNorm & Partial<Norm>;
const anyNormSpec = (c: InternVitConfig, name: string) =>
  (c.norm_type === "rms_norm" ? rmsNormSpec : normSpec)(name, c.hidden_size) as ReturnType<typeof normSpec>;
const normalise = ({ weight, bias }: EitherNorm, x: tf.Tensor3D, eps: number): tf.Tensor3D =>
  bias ? layerNorm({ weight, bias }, x, eps) : rmsNorm({ weight }, x, eps);

const attentionSpec = (name: string, { fused, out }: Names, c: InternVitConfig) => {
  const D = c.hidden_size;
  const inner = (part: string, width: number) =>
    (c.attention_bias ? linearSpec : projectionSpec)(`${name}.${part}`, D, width) as ReturnType<typeof projectionSpec>;
  return {
    ...(fused ? ({ qkv: inner("qkv", 3 * D) } as object) : { q: inner("q_proj", D), k: inner("k_proj", D), v: inner("v_proj", D) }),
    ...(c.use_qk_norm ? { qNorm: rmsNormSpec(`${name}.q_norm`, D), kNorm: rmsNormSpec(`${name}.k_norm`, D) } : {}),
    out: linearSpec(`${name}.${out}`, D, D),
  } as { out: ReturnType<typeof linearSpec> };
};

const blockSpec = (name: string, names: Names, c: InternVitConfig) => {
  const { hidden_size: D, intermediate_size: F } = c;
  return {
    ln1: anyNormSpec(c, `${name}.${names.ln1}`),
    attn: attentionSpec(`${name}.${names.attn}`, names, c),
    scale1: w(`${name}.${names.scale1}`, [D]),
    ln2: anyNormSpec(c, `${name}.${names.ln2}`),
    mlp: { fc1: linearSpec(`${name}.mlp.fc1`, D, F), fc2: linearSpec(`${name}.mlp.fc2`, F, D) },
    scale2: w(`${name}.${names.scale2}`, [D]),
  };
};

/** Every weight by its name in the file. prefix: "vision_tower." or "vision_model.". */
export const internVitSpec = (c: InternVitConfig, prefix: string, layout: InternVitLayout = "transformers") => {
  const names: Names = LAYOUTS[layout];
  return {
    cls: w(`${prefix}${names.cls}`, [1, 1, c.hidden_size]),
    patch: {
      weight: patchKernel(`${prefix}${names.patch}.weight`, [c.hidden_size, c.num_channels, c.patch_size]),
      bias: w(`${prefix}${names.patch}.bias`, [c.hidden_size]),
    },
    position: w(`${prefix}${names.position}`, [1, Math.floor(c.image_size / c.patch_size) ** 2 + 1, c.hidden_size]),
    blocks: repeat(c.num_hidden_layers, (i) => blockSpec(`${prefix}${names.layer}.${i}`, names, c)),
    ...(c.final_norm ? { norm: normSpec(`${prefix}layernorm`, c.hidden_size) } : {}),
  };
};
export type InternVit = Params<ReturnType<typeof internVitSpec>>;
type Block = InternVit["blocks"][number];
type AnyAttention = (Attention | FusedAttention) & { qNorm?: RmsNorm; kNorm?: RmsNorm };

function attend(p: AnyAttention, c: InternVitConfig, x: tf.Tensor3D, tap: Tap): tf.Tensor3D {
  const norm = (weights: RmsNorm) => (y: tf.Tensor3D) => rmsNorm(weights, y, c.qk_norm_eps);
  const norms = p.qNorm && p.kNorm && { q: norm(p.qNorm), k: norm(p.kNorm) }; // over the whole width, before the heads
  const options = { heads: c.num_attention_heads, norms, tap };
  return "qkv" in p ? fusedAttention(p, x, options) : attention(p, x, options);
}

function block(p: Block, c: InternVitConfig, x: tf.Tensor3D, tap: Tap): tf.Tensor3D {
  const eps = c.layer_norm_eps;
  x = tap("resid_pre", x);
  const attn = attend(p.attn as unknown as AnyAttention, c, normalise(p.ln1, x, eps), at(tap, "attn"));
  x = tap(
    "resid_mid",
    add(x, "attn_out", tap, (onto) => scaleBy(p.scale1, attn, onto)),
  );
  const ff = mlp(p.mlp, normalise(p.ln2, x, eps), activationName(c.hidden_act), at(tap, "mlp"));
  return tap(
    "resid_post",
    add(x, "mlp_out", tap, (onto) => scaleBy(p.scale2, ff, onto)),
  );
}

/** The position table for a picture of H x W pixels: the checkpoint's, or resized bicubically. [1, N, D] */
function positionsFor(position: tf.Tensor3D, c: InternVitConfig, H: number, W: number): tf.Tensor3D {
  const [side, rows, columns] = [c.image_size, H, W].map((size) => Math.floor(size / c.patch_size));
  if (rows === side && columns === side) return position;
  const D = c.hidden_size;
  const table = position.reshape([side * side + 1, D]) as tf.Tensor2D;
  const patches = resizePositions(table.slice([1, 0], [side * side, D]), side, { rows, columns });
  return tf.concat([table.slice([0, 0], [1, D]), patches]).expandDims(0);
}

/**
 * The residual stream at a depth, class token first. pixels: [B, S, S, 3], mean and std applied -> [B, 1 + (S / P)², D]
 * Taps: `vision.patch_embed`, `vision.embed`, `vision.blocks.N.…` as CLIP's. Blocks behind the depth run only while a tap watches them.
 *
 * @param layer as an index of transformers' `hidden_states`: 0 is what goes into the first block, -1 what comes out of the last
 * @throws RangeError for a layer that the tower does not have
 */
export function internVit(p: InternVit, c: InternVitConfig, pixels: tf.Tensor4D, tap: Tap = noTap, layer = -1): tf.Tensor3D {
  const depth = layer < 0 ? p.blocks.length + 1 + layer : layer;
  if (!Number.isInteger(depth) || depth < 0 || depth > p.blocks.length)
    throw new RangeError(`vision layer ${layer} (vision_feature_layer, select_layer): the tower has ${p.blocks.length} layers`);
  return tf.tidy(() => {
    const t = at(tap, "vision");
    const [B, H, W] = pixels.shape;
    const patches = t("patch_embed", patchEmbed(p.patch, pixels, c.patch_size)); //                   [B, N-1, D]
    const cls = p.cls.tile([B, 1, 1]); //                                                              [B, 1, D]
    let x = t("embed", tf.concat([cls, patches], 1).add(positionsFor(p.position, c, H, W)) as tf.Tensor3D); // [B, N, D]
    let seen = x;
    for (const [i, weights] of p.blocks.entries()) {
      const watch = at(t, `blocks.${i}`);
      if (i >= depth && !watched(watch)) break;
      x = asBlock(weights, { x }, ({ x }) => block(weights, c, x, watch), { tap: watch });
      if (i < depth) seen = x;
    }
    return p.norm && layer === -1 ? layerNorm(p.norm, seen, c.layer_norm_eps) : seen;
  });
}
