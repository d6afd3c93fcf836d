/**
 * SigLIP: CLIP's two towers trained with a sigmoid for every pair (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"). No class token: a
 * learned probe pools the patches by attention. Texts are padded to one length and read in both directions; their last position is pooled. Numbers as
 * transformers/models/siglip/modeling_siglip.py; names of weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { activationName, activations, attention, embedding, layerNorm, linear, linearSpec, mlp, normSpec, patchEmbed } from "../nn/layers";
import { addSameShape } from "../nn/ops";
import { resizePositions } from "../nn/position-table";
import { matrix, type Params, patchKernel, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { unit } from "./clip";
import { checkHeads, checkKnown, readConfig } from "./config";
import { type EncoderConfig, encoder, encoderSpec, encoderStates } from "./encoder";

const TOWER_DEFAULTS = {
  hidden_size: 768,
  intermediate_size: 3072,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  hidden_act: "gelu_pytorch_tanh",
  layer_norm_eps: 1e-6,
};
const TEXT_DEFAULTS = { ...TOWER_DEFAULTS, vocab_size: 32000, max_position_embeddings: 64, projection_size: null as number | null };
const VISION_DEFAULTS = { ...TOWER_DEFAULTS, num_channels: 3, image_size: 224, patch_size: 16, vision_use_head: true };

export type SiglipTextConfig = Omit<typeof TEXT_DEFAULTS, "projection_size"> & { projection_size: number };
export type SiglipVisionConfig = typeof VISION_DEFAULTS;
export type SiglipConfig = { text_config: SiglipTextConfig; vision_config: SiglipVisionConfig };

function checkTower<C extends typeof TOWER_DEFAULTS>(where: string, config: C): C {
  checkHeads(where, config);
  checkKnown(`${where}: hidden_act`, config.hidden_act, Object.keys(activations));
  return config;
}

/** The `vision_config` of a SigLIP tower -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export const siglipVisionConfig = (raw: unknown, where = "config.json: vision_config"): SiglipVisionConfig =>
  checkTower(where, readConfig(raw, VISION_DEFAULTS, where) as SiglipVisionConfig);

/** `config.json` of a SigLIP checkpoint -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export function siglipConfig({ text_config, vision_config, ...rest }: { [key: string]: unknown }): SiglipConfig {
  readConfig(rest, {}, "config.json");
  const where = "config.json: text_config";
  const text = checkTower(where, readConfig(text_config, TEXT_DEFAULTS, where, ["eos_token_id"]) as typeof TEXT_DEFAULTS);
  const vision = siglipVisionConfig(vision_config);
  if (!vision.vision_use_head)
    throw new Error(
      "config.json: vision_config: vision_use_head false leaves no picture embedding; such a tower belongs in a vision-language model",
    );
  const projection_size = text.projection_size ?? text.hidden_size;
  if (projection_size !== vision.hidden_size)
    throw new Error(
      `config.json: texts become ${projection_size} numbers (text_config: projection_size), pictures ${vision.hidden_size} (vision_config: hidden_size); they must be equal`,
    );
  return { text_config: { ...text, projection_size }, vision_config: vision };
}

const headSpec = (name: string, { hidden_size: D, intermediate_size: F }: SiglipVisionConfig) => ({
  probe: w(`${name}.probe`, [1, 1, D]),
  /** Queries, keys and values one below the other, float32: no linear layer of its own, and so nothing that LoRA adapts. */
  inProj: { weight: w(`${name}.attention.in_proj_weight`, [3 * D, D]), bias: w(`${name}.attention.in_proj_bias`, [3 * D]) },
  out: linearSpec(`${name}.attention.out_proj`, D, D),
  norm: normSpec(`${name}.layernorm`, D),
  mlp: { fc1: linearSpec(`${name}.mlp.fc1`, D, F), fc2: linearSpec(`${name}.mlp.fc2`, F, D) },
});

/** The picture tower without its pooling head. prefix: "vision_model.", or where a vision-language model keeps it. */
export const siglipVisionSpec = (v: EncoderConfig & PatchedConfig & { num_channels: number }, prefix: string) => ({
  patch: {
    weight: patchKernel(`${prefix}embeddings.patch_embedding.weight`, [v.hidden_size, v.num_channels, v.patch_size]),
    bias: w(`${prefix}embeddings.patch_embedding.bias`, [v.hidden_size]),
  },
  position: w(`${prefix}embeddings.position_embedding.weight`, [Math.floor(v.image_size / v.patch_size) ** 2, v.hidden_size]),
  blocks: encoderSpec(v, prefix),
  lnPost: normSpec(`${prefix}post_layernorm`, v.hidden_size),
});
export type SiglipVision = Params<ReturnType<typeof siglipVisionSpec>>;

/** Every weight of the checkpoint by its name in the file. */
export const siglipSpec = ({ text_config: t, vision_config: v }: SiglipConfig) => ({
  text: {
    token: matrix("text_model.embeddings.token_embedding.weight", [t.vocab_size, t.hidden_size]),
    position: w("text_model.embeddings.position_embedding.weight", [t.max_position_embeddings, t.hidden_size]),
    blocks: encoderSpec(t, "text_model."),
    lnFinal: normSpec("text_model.final_layer_norm", t.hidden_size),
    head: linearSpec("text_model.head", t.hidden_size, t.projection_size),
  },
  vision: { ...siglipVisionSpec(v, "vision_model."), head: headSpec("vision_model.head", v) },
  logitScale: w("logit_scale", [1]),
  logitBias: w("logit_bias", [1]),
});
export type SiglipParams = Params<ReturnType<typeof siglipSpec>>;

/** Buffers that old files carry and the model computes itself. */
export const siglipIgnored = /\.position_ids$/;

type PatchedConfig = Pick<SiglipVisionConfig, "patch_size" | "image_size">;

/** What the first block of the picture tower reads: patches, and positions for their grid. pixels: [B, H, W, 3] -> [B, N, D] */
export function embedPatches(p: SiglipVision, c: PatchedConfig, pixels: tf.Tensor4D, tap: Tap): tf.Tensor3D {
  const [, H, W] = pixels.shape;
  const patches = tap("patch_embed", patchEmbed(p.patch, pixels, c.patch_size)); //                  [B, N, D]
  const grid = { rows: Math.floor(H / c.patch_size), columns: Math.floor(W / c.patch_size) };
  return tap("embed", patches.add(resizePositions(p.position, Math.floor(c.image_size / c.patch_size), grid)) as tf.Tensor3D);
}

/**
 * The picture tower's residual stream at some depths, as a vision-language model reads it: see `encoderStates`. pixels: [B, H, W, 3], mean and std of the
 * checkpoint applied; a size other than the checkpoint's has its position table resized bicubically -> each [B, N, D]
 * Taps: `vision.patch_embed`, `vision.embed`, `vision.blocks.N.…` as CLIP's.
 */
export function siglipStates(
  p: SiglipVision,
  c: SiglipVisionConfig,
  pixels: tf.Tensor4D,
  depths: readonly number[],
  tap: Tap = noTap,
): tf.Tensor3D[] {
  const t = at(tap, "vision");
  return encoderStates(p.blocks, c, embedPatches(p, c, pixels, t), depths, t);
}

/**
 * Picture embeddings, not normalised. pixels: [B, H, W, 3] -> [B, D]
 * Taps: those of `siglipStates`, `vision.final` (every patch, behind the last norm), `vision.head.{q,k,v,attn_scores,pattern,z}`, `vision.head.attn_out`, `vision.out`.
 */
export function encodeImage(p: SiglipParams["vision"], c: SiglipVisionConfig, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor2D {
  const t = at(tap, "vision");
  const [x] = siglipStates(p, c, pixels, [-1], tap);
  const final = t("final", layerNorm(p.lnPost, x, c.layer_norm_eps)); //                             [B, N, D]
  return t("out", pool(p.head, c, final, at(t, "head")).reshape([x.shape[0], c.hidden_size]) as tf.Tensor2D);
}

/** A learned probe looks at all patches (Lee et al. 2019, "Set Transformer": pooling by attention). states: [B, N, D] -> [B, 1, D] */
function pool(p: SiglipParams["vision"]["head"], c: SiglipVisionConfig, states: tf.Tensor3D, tap: Tap): tf.Tensor3D {
  const [B, , D] = states.shape;
  const part = (i: number) => ({ weight: p.inProj.weight.slice([i * D, 0], [D, D]), bias: p.inProj.bias.slice([i * D], [D]) });
  const probe = p.probe.tile([B, 1, 1]) as tf.Tensor3D;
  const layers = { q: part(0), k: part(1), v: part(2), out: p.out };
  const x = tap("attn_out", attention(layers, probe, { heads: c.num_attention_heads, states, tap })); //    [B, 1, D]
  return addSameShape(x, mlp(p.mlp, layerNorm(p.norm, x, c.layer_norm_eps), activationName(c.hidden_act), at(tap, "mlp")));
}

/**
 * Text embeddings, not normalised. ids: int32 [B, N], padded to the checkpoint's length with `</s>`, which is read like any token -> [B, projection_size].
 * mask: int32 [B, N], 1 where a token counts; the checkpoints were trained without. The last position is pooled whatever stands there.
 * Taps as for pictures, under `text.`; `text.final` is the normalised residual stream of every position.
 */
export function encodeText(
  p: SiglipParams["text"],
  c: SiglipTextConfig,
  ids: tf.Tensor2D,
  mask?: tf.Tensor2D,
  tap: Tap = noTap,
): tf.Tensor2D {
  const [B, N] = ids.shape;
  if (N > c.max_position_embeddings)
    throw new RangeError(`encodeText: ${N} tokens, the model has ${c.max_position_embeddings} positions; truncate (tokenizer.batch does)`);
  const t = at(tap, "text");
  const position = p.position.slice([0, 0], [N, c.hidden_size]);
  let x = t("embed", embedding(p.token, ids).add(position) as tf.Tensor3D); //                       [B, N, D]
  x = encoder(p.blocks, c, x, t, { padding: mask });
  const final = t("final", layerNorm(p.lnFinal, x, c.layer_norm_eps)); //                            [B, N, D]
  const pooled = t("pooled", final.slice([0, N - 1, 0], [B, 1, c.hidden_size]).reshape([B, c.hidden_size]) as tf.Tensor2D);
  return t("out", linear(p.head, pooled) as tf.Tensor2D); //                                         [B, projection_size]
}

type Scale = Pick<SiglipParams, "logitScale" | "logitBias">;

/** exp(logit_scale) · cosine + logit_bias of every picture with every text: `logits_per_image`. images: [B, D], texts: [T, D] -> [B, T] */
export const siglipLogits = ({ logitScale, logitBias }: Scale, images: tf.Tensor2D, texts: tf.Tensor2D): tf.Tensor2D =>
  tf.matMul(unit(images), unit(texts), false, true).mul(logitScale.exp()).add(logitBias) as tf.Tensor2D;

/**
 * The sigmoid loss of B matching pairs: each pair of the batch by itself is right or wrong, and the sum is divided by B (Zhai et al. 2023, section 3.2).
 * images, texts: [B, D], neither normalised -> scalar
 */
export function sigmoidLoss(scale: Scale, images: tf.Tensor2D, texts: tf.Tensor2D): tf.Scalar {
  const logits = siglipLogits(scale, images, texts);
  const B = logits.shape[0];
  const signs = tf.eye(B).mul(-2).add(1); //                                                         -1 for a pair, else 1
  return logits.mul(signs).softplus().sum().div(B) as tf.Scalar; //                                  -log σ(x) = softplus(-x)
}
