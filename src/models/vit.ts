/**
 * ViT (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"): the picture tower of VisionTextDualEncoder, and with its blocks all three encoders of
 * FLAVA. Numbers as transformers/models/vit/modeling_vit.py; names of weights as in its published checkpoints.
 */
import { tf } from "../engine/tf";
import { activations, layerNorm, linear, linearSpec, normSpec, patchEmbed, projectionSpec } from "../nn/layers";
import { resizePositions } from "../nn/position-table";
import { type Params, patchKernel, repeat, w } from "../nn/spec";
import { noTap, type Tap } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";
import { type EncoderConfig, encoder } from "./encoder";

/** What transformers' ViT and FLAVA have in common. */
export const VIT_BLOCKS = {
  hidden_size: 768,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  intermediate_size: 3072,
  hidden_act: "gelu",
  layer_norm_eps: 1e-12,
  qkv_bias: true,
};
export const VIT_DEFAULTS = { ...VIT_BLOCKS, image_size: 224, patch_size: 16, num_channels: 3 };
export type VitBlocksConfig = typeof VIT_BLOCKS;
export type VitConfig = typeof VIT_DEFAULTS;

/** Of training alone. */
export const VIT_UNUSED = ["hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "encoder_stride"];

/** Checks of any part that is made of these blocks. @throws for heads that do not divide the width and unknown activations */
export function checkVit<C extends VitBlocksConfig>(where: string, c: C): C {
  checkHeads(where, c);
  checkKnown(`${where}: hidden_act`, c.hidden_act, Object.keys(activations));
  return c;
}

/** The `vision_config` of a ViT with its pooler -> config with every value present. @throws listing unhandled keys and impossible sizes */
export function vitConfig(raw: unknown, where = "config.json: vision_config"): VitConfig {
  const defaults = { ...VIT_DEFAULTS, pooler_act: "tanh", pooler_output_size: null as number | null };
  const { pooler_act, pooler_output_size, ...c } = readConfig(raw, defaults, where, VIT_UNUSED);
  checkKnown(`${where}: pooler_act`, pooler_act as string, ["tanh"]);
  if ((pooler_output_size ?? c.hidden_size) !== c.hidden_size)
    throw new Error(`${where}: pooler_output_size is ${pooler_output_size}, expected hidden_size, ${c.hidden_size}`);
  return checkVit(where, c as VitConfig);
}

const blockSpec = (name: string, { hidden_size: D, intermediate_size: F, qkv_bias }: VitBlocksConfig) => {
  const projection = (part: string) => (qkv_bias ? linearSpec(part, D, D) : projectionSpec(part, D, D)) as ReturnType<typeof linearSpec>;
  return {
    ln1: normSpec(`${name}.layernorm_before`, D),
    attn: {
      q: projection(`${name}.attention.attention.query`),
      k: projection(`${name}.attention.attention.key`),
      v: projection(`${name}.attention.attention.value`),
      out: linearSpec(`${name}.attention.output.dense`, D, D),
    },
    ln2: normSpec(`${name}.layernorm_after`, D),
    mlp: { fc1: linearSpec(`${name}.intermediate.dense`, D, F), fc2: linearSpec(`${name}.output.dense`, F, D) },
  };
};

/** The blocks by their names in the file. prefix: such as "vision_model.". */
export const vitBlocks = (c: VitBlocksConfig, prefix: string) =>
  repeat(c.num_hidden_layers, (i) => blockSpec(`${prefix}encoder.layer.${i}`, c));

/** Every weight of the tower without its pooler. prefix: "vision_model.", "flava.image_model.". */
export const vitSpec = (c: VitConfig, prefix: string) => ({
  cls: w(`${prefix}embeddings.cls_token`, [1, 1, c.hidden_size]),
  patch: {
    weight: patchKernel(`${prefix}embeddings.patch_embeddings.projection.weight`, [c.hidden_size, c.num_channels, c.patch_size]),
    bias: w(`${prefix}embeddings.patch_embeddings.projection.bias`, [c.hidden_size]),
  },
  position: w(`${prefix}embeddings.position_embeddings`, [1, Math.floor(c.image_size / c.patch_size) ** 2 + 1, c.hidden_size]),
  blocks: vitBlocks(c, prefix),
  norm: normSpec(`${prefix}layernorm`, c.hidden_size),
});
export type Vit = Params<ReturnType<typeof vitSpec>>;

/** Patches whose content is hidden: `token` stands for each where int32 [B, N-1] is 1. */
export type Masked = { token: tf.Tensor; where: tf.Tensor2D };

/** Class token, patches, positions. pixels: [B, H, W, 3] -> [B, N, D] */
function embed(p: Vit, c: VitConfig, pixels: tf.Tensor4D, tap: Tap, masked?: Masked): tf.Tensor3D {
  const [B, H, W] = pixels.shape;
  const [D, side] = [c.hidden_size, Math.floor(c.image_size / c.patch_size)];
  const shown = tap("patch_embed", patchEmbed(p.patch, pixels, c.patch_size)); //                    [B, N-1, D]
  if (masked && String(masked.where.shape) !== String(shown.shape.slice(0, 2)))
    throw new RangeError(`hidden patches are [${masked.where.shape}], expected [${shown.shape.slice(0, 2)}]: pictures, patches of each`);
  const patches = masked ? tf.where(masked.where.expandDims(2).equal(1), masked.token, shown) : shown;
  const table = p.position.reshape([side * side + 1, D]) as tf.Tensor2D;
  const grid = { rows: Math.floor(H / c.patch_size), columns: Math.floor(W / c.patch_size) };
  const places = resizePositions(table.slice([1, 0], [side * side, D]), side, grid);
  const position = tf.concat([table.slice([0, 0], [1, D]), places]);
  return tap("embed", tf.concat([p.cls.tile([B, 1, 1]), patches], 1).add(position) as tf.Tensor3D);
}

/**
 * The residual stream behind the last block, and every token behind the last norm. pixels: [B, H, W, 3], mean and std of the checkpoint applied; a size
 * other than the checkpoint's has its position table resized bicubically -> each [B, N, D]
 * Taps: `patch_embed`, `embed`, `blocks.N.…` as CLIP's, `final`.
 */
export function vit(
  p: Vit,
  c: VitConfig,
  pixels: tf.Tensor4D,
  tap: Tap = noTap,
  masked?: Masked,
): { states: tf.Tensor3D; final: tf.Tensor3D } {
  const states = encoder(p.blocks, c as EncoderConfig, embed(p, c, pixels, tap, masked), tap);
  return { states, final: tap("final", layerNorm(p.norm, states, c.layer_norm_eps) as tf.Tensor3D) };
}

/** Rows of the first token. [B, N, D] -> [B, D] */
export const firstToken = (x: tf.Tensor3D): tf.Tensor2D =>
  x.slice([0, 0, 0], [x.shape[0], 1, x.shape[2]]).reshape([x.shape[0], x.shape[2]]) as tf.Tensor2D;

/** tanh of a dense layer on the first token. [B, N, D] -> [B, D]. Tap: `pooled`. */
export const poolFirst = (p: Params<ReturnType<typeof linearSpec>>, x: tf.Tensor3D, tap: Tap = noTap): tf.Tensor2D =>
  tap("pooled", linear(p, firstToken(x)).tanh() as tf.Tensor2D);

const MODULES: readonly [file: RegExp, module: string][] = [
  [/encoder\.layer\.(\d+)\./, "layers.$1."],
  [/attention\.attention\.(q|k|v)(?:uery|ey|alue)$/, "attention.$1_proj"],
  [/attention\.output\.dense$/, "attention.o_proj"],
  [/(\.\d+)\.intermediate\.dense$/, "$1.mlp.fc1"],
  [/(\.\d+)\.output\.dense$/, "$1.mlp.fc2"],
];

/** What a module of a ViT's file is called in transformers 5, and so in PEFT's adapters. */
export const vitModule = (name: string): string => MODULES.reduce((now, [file, module]) => now.replace(file, module), name);
