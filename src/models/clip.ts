/**
 * CLIP: two transformers that put pictures and texts in one space (Radford et al. 2021, "Learning Transferable Visual Models From Natural
 * Language Supervision"). Numbers as transformers/models/clip/modeling_clip.py; names of weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { crossEntropy } from "../nn/cross-entropy";
import { activations, embedding, layerNorm, linear, normSpec, patchEmbed, patchSpec, projectionSpec } from "../nn/layers";
import { resizePositions } from "../nn/position-table";
import { matrix, type Params, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";
import { encoder, encoderSpec, encoderStates } from "./encoder";

const TEXT_DEFAULTS = {
  vocab_size: 49408,
  hidden_size: 512,
  intermediate_size: 2048,
  num_hidden_layers: 12,
  num_attention_heads: 8,
  max_position_embeddings: 77,
  hidden_act: "quick_gelu",
  layer_norm_eps: 1e-5,
  eos_token_id: 49407,
};
const VISION_DEFAULTS = {
  hidden_size: 768,
  intermediate_size: 3072,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  num_channels: 3,
  image_size: 224,
  patch_size: 32,
  hidden_act: "quick_gelu",
  layer_norm_eps: 1e-5,
};
const CLIP_DEFAULTS = { projection_dim: 512, logit_scale_init_value: 2.6592 };

export type TextConfig = typeof TEXT_DEFAULTS;
export type VisionConfig = typeof VISION_DEFAULTS;
export type ClipConfig = typeof CLIP_DEFAULTS & { text_config: TextConfig; vision_config: VisionConfig };

/** The `vision_config` of a CLIP tower -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export function clipVisionConfig(raw: unknown, where = "config.json: vision_config"): VisionConfig {
  return checkTower(where, readConfig(raw, VISION_DEFAULTS, where, ["projection_dim", "vocab_size"]) as VisionConfig);
}

function checkTower<C extends TextConfig | VisionConfig>(where: string, config: C): C {
  checkHeads(where, config);
  checkKnown(`${where}: hidden_act`, config.hidden_act, Object.keys(activations));
  return config;
}

/** `config.json` of a CLIP checkpoint -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export function clipConfig(raw: { [key: string]: unknown }): ClipConfig {
  const { text_config, vision_config, text_config_dict, vision_config_dict, ...rest } = raw;
  // The towers' projection_dim is unused in CLIPModel; the *_dict twins of old files win where they are given, as in transformers.
  const merged = (part: unknown, twin: unknown) => (twin ? { ...(part as object), ...(twin as object) } : part);
  const where = "config.json: text_config";
  return {
    ...readConfig(rest, CLIP_DEFAULTS, "config.json"),
    text_config: checkTower(
      where,
      readConfig(merged(text_config, text_config_dict), TEXT_DEFAULTS, where, ["projection_dim"]) as TextConfig,
    ),
    vision_config: clipVisionConfig(merged(vision_config, vision_config_dict)),
  };
}

/** The picture tower without CLIP's projection. prefix: "vision_model.", or where a vision-language model keeps it. */
export const clipVisionSpec = (v: VisionConfig, prefix: string) => ({
  cls: w(`${prefix}embeddings.class_embedding`, [v.hidden_size]),
  patch: patchSpec(`${prefix}embeddings.patch_embedding`, v.num_channels, v.patch_size, v.hidden_size),
  position: w(`${prefix}embeddings.position_embedding.weight`, [Math.floor(v.image_size / v.patch_size) ** 2 + 1, v.hidden_size]),
  lnPre: normSpec(`${prefix}pre_layrnorm`, v.hidden_size), // sic: the name in the checkpoint
  blocks: encoderSpec(v, prefix),
  lnPost: normSpec(`${prefix}post_layernorm`, v.hidden_size),
});
export type ClipVision = Params<ReturnType<typeof clipVisionSpec>>;

/** Every weight of the checkpoint by its name in the file. */
export const clipSpec = ({ text_config: t, vision_config: v, projection_dim }: ClipConfig) => ({
  text: {
    token: matrix("text_model.embeddings.token_embedding.weight", [t.vocab_size, t.hidden_size]),
    position: w("text_model.embeddings.position_embedding.weight", [t.max_position_embeddings, t.hidden_size]),
    blocks: encoderSpec(t, "text_model."),
    lnFinal: normSpec("text_model.final_layer_norm", t.hidden_size),
    project: projectionSpec("text_projection", t.hidden_size, projection_dim),
  },
  vision: {
    ...clipVisionSpec(v, "vision_model."),
    project: projectionSpec("visual_projection", v.hidden_size, projection_dim),
  },
  logitScale: w("logit_scale", []),
});
export type ClipParams = Params<ReturnType<typeof clipSpec>>;

/** Buffers that old files carry and the model computes itself. */
export const clipIgnored = /\.position_ids$/;

/** What the first block of the picture tower reads: class token, patches, positions. pixels: [B, H, W, 3] -> [B, N, D] */
function embedPatches(p: ClipVision, c: VisionConfig, pixels: tf.Tensor4D, tap: Tap): tf.Tensor3D {
  const [B, H, W] = pixels.shape;
  const D = c.hidden_size;
  const patches = tap("patch_embed", patchEmbed(p.patch, pixels, c.patch_size)); //                  [B, N-1, D]
  const cls = p.cls.reshape([1, 1, D]).tile([B, 1, 1]); //                                           [B, 1, D]
  const x = tf.concat([cls, patches], 1).add(positionTable(p.position, c, H, W)) as tf.Tensor3D; //  [B, N, D]
  return layerNorm(p.lnPre, tap("embed", x), c.layer_norm_eps);
}

/**
 * Picture embeddings, not normalised. pixels: [B, H, W, 3], mean and std of the checkpoint applied -> [B, projection_dim].
 * A size other than the checkpoint's has its position table resized bicubically (transformers' `interpolate_pos_encoding`).
 * Taps: `vision.patch_embed`, `vision.embed`, `vision.blocks.N.{resid_pre,attn.{q,k,v,attn_scores,pattern,z},attn_out,resid_mid,mlp.{pre,post},mlp_out,
 * resid_post}`, `vision.pooled`, `vision.out`.
 */
export function encodeImage(p: ClipParams["vision"], c: VisionConfig, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor2D {
  const [B, D] = [pixels.shape[0], c.hidden_size];
  const t = at(tap, "vision");
  const x = encoder(p.blocks, c, embedPatches(p, c, pixels, t), t); //                               [B, N, D]
  const first = x.slice([0, 0, 0], [B, 1, D]).reshape([B, D]) as tf.Tensor2D; //                     [B, D]
  const pooled = t("pooled", layerNorm(p.lnPost, first, c.layer_norm_eps));
  return t("out", linear(p.project, pooled) as tf.Tensor2D); //                                      [B, projection_dim]
}

/**
 * The tower's residual stream at some depths, class token first, as a vision-language model reads it: see `encoderStates`. -> each [B, N, D]
 * Taps as `encodeImage`'s, without `pooled` and `out`.
 */
export function clipStates(
  p: ClipVision,
  c: VisionConfig,
  pixels: tf.Tensor4D,
  depths: readonly number[],
  tap: Tap = noTap,
): tf.Tensor3D[] {
  const t = at(tap, "vision");
  return encoderStates(p.blocks, c, embedPatches(p, c, pixels, t), depths, t);
}

/**
 * Text embeddings, not normalised. ids: int32 [B, N], mask: int32 [B, N] (1 = real token; none = all real) -> [B, projection_dim].
 * Pooled at the end-of-text token: its first place, or the largest id where the config says `eos_token_id` 2 (files of before 2023).
 * Taps as for pictures, under `text.`; `text.final` is the normalised residual stream of every position.
 */
export function encodeText(p: ClipParams["text"], c: TextConfig, ids: tf.Tensor2D, mask?: tf.Tensor2D, tap: Tap = noTap): tf.Tensor2D {
  const [B, N] = ids.shape;
  if (N > c.max_position_embeddings)
    throw new RangeError(`encodeText: ${N} tokens, the model has ${c.max_position_embeddings} positions; truncate (tokenizer.batch does)`);
  const t = at(tap, "text");
  const position = p.position.slice([0, 0], [N, c.hidden_size]);
  let x = t("embed", embedding(p.token, ids).add(position) as tf.Tensor3D); //                       [B, N, D]
  x = encoder(p.blocks, c, x, t, { causal: true, padding: mask });
  const final = t("final", layerNorm(p.lnFinal, x, c.layer_norm_eps)); //                            [B, N, D]
  const end = c.eos_token_id === 2 ? ids.argMax(-1) : ids.equal(c.eos_token_id).cast("int32").argMax(-1);
  const pick = tf
    .oneHot(end as tf.Tensor1D, N)
    .cast("float32")
    .reshape([B, 1, N]); //               differentiable row choice
  const pooled = t("pooled", tf.matMul(pick, final).reshape([B, c.hidden_size]) as tf.Tensor2D); //  [B, D]
  return t("out", linear(p.project, pooled) as tf.Tensor2D); //                                      [B, projection_dim]
}

/** Rows scaled to length 1. x: [B, D] -> [B, D] */
export const unit = (x: tf.Tensor2D): tf.Tensor2D => x.div(x.square().sum(-1, true).sqrt()) as tf.Tensor2D;

/** exp(logit_scale) · cosine of every picture with every text: `logits_per_image`. images: [B, d], texts: [T, d], neither normalised -> [B, T] */
export const clipLogits = (logitScale: tf.Scalar, images: tf.Tensor2D, texts: tf.Tensor2D): tf.Tensor2D =>
  tf.matMul(unit(images), unit(texts), false, true).mul(logitScale.exp()) as tf.Tensor2D;

/** Symmetric contrastive loss of B matching pairs (CLIP, figure 3). images, texts: [B, d], neither normalised -> scalar */
export function contrastiveLoss(logitScale: tf.Scalar, images: tf.Tensor2D, texts: tf.Tensor2D): tf.Scalar {
  const logits = clipLogits(logitScale, images, texts);
  const labels = tf.range(0, logits.shape[0], 1, "int32");
  return crossEntropy(logits, labels)
    .add(crossEntropy(logits.transpose() as tf.Tensor2D, labels))
    .div(2) as tf.Scalar;
}

/** The position table for a picture of H x W pixels: the checkpoint's, or resized bicubically to the new grid. [N, D] */
function positionTable(position: tf.Tensor2D, c: VisionConfig, H: number, W: number): tf.Tensor2D {
  const side = Math.floor(c.image_size / c.patch_size);
  const [rows, columns] = [Math.floor(H / c.patch_size), Math.floor(W / c.patch_size)];
  if (rows === side && columns === side) return position;
  if (rows < 1 || columns < 1)
    throw new RangeError(`encodeImage: a picture of ${H}x${W} pixels holds no patch of ${c.patch_size}x${c.patch_size}`);
  const D = c.hidden_size;
  const grid = position.slice([1, 0], [side * side, D]);
  return tf.concat([position.slice([0, 0], [1, D]), resizePositions(grid, side, { rows, columns })]) as tf.Tensor2D;
}
