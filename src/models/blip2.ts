/**
 * BLIP-2's first stage (Li et al. 2023, section 3.1): a frozen picture tower, and a Q-Former that learns to match pictures and texts by three objectives, each
 * with its mask. Numbers as transformers/models/blip_2/modeling_blip_2.py (Blip2ForImageTextRetrieval); names of weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { crossEntropy, IGNORED } from "../nn/cross-entropy";
import { linear, linearSpec } from "../nn/layers";
import { type Params, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { readConfig } from "./config";
import { type EvaVitConfig, evaVitConfig, evaVitSpec } from "./eva-vit";
import {
  languageHeadSpec,
  languageLogits,
  qFormer,
  type QFormerConfig,
  qFormerConfig,
  type QFormerInputs,
  qFormerSpec,
  queryRows,
} from "./qformer";

const DEFAULTS = { num_query_tokens: 32, image_text_hidden_size: 256, image_token_index: null as number | null };
const UNUSED = ["text_config", "use_decoder_only_language_model"];

export type Blip2Config = {
  num_query_tokens: number;
  image_text_hidden_size: number;
  vision_config: EvaVitConfig;
  qformer_config: QFormerConfig;
};

/** `config.json` of a Blip2ForImageTextRetrieval -> config with every value present. @throws listing unhandled keys and impossible sizes */
export function blip2Config(raw: { [key: string]: unknown }): Blip2Config {
  const { vision_config, qformer_config, ...rest } = raw;
  const read = readConfig(rest, DEFAULTS, "config.json", UNUSED);
  const vision = evaVitConfig(vision_config);
  const qformer = qFormerConfig({ use_qformer_text_input: true, encoder_hidden_size: vision.hidden_size, ...(qformer_config as object) });
  const problems: string[] = [];
  if (!qformer.use_qformer_text_input)
    problems.push("  qformer_config: use_qformer_text_input is false; image-text retrieval reads text with the Q-Former");
  if (qformer.encoder_hidden_size !== vision.hidden_size)
    problems.push(
      `  qformer_config: encoder_hidden_size is ${qformer.encoder_hidden_size}, vision_config: hidden_size ${vision.hidden_size}`,
    );
  if (problems.length) throw new Error(`config.json cannot be used:\n${problems.join("\n")}`);
  return {
    num_query_tokens: read.num_query_tokens,
    image_text_hidden_size: read.image_text_hidden_size,
    vision_config: vision,
    qformer_config: qformer,
  };
}

/**
 * Every weight by its name in the file.
 *
 * @param languageHead whether the file has the head of the third objective (`cls.predictions.`, as the authors' own checkpoints of the first stage)
 */
export const blip2Spec = (c: Blip2Config, languageHead = false) => ({
  queries: w("query_tokens", [1, c.num_query_tokens, c.qformer_config.hidden_size]),
  vision: evaVitSpec(c.vision_config),
  qformer: qFormerSpec(c.qformer_config, "qformer.", { words: "embeddings.", norm: "qformer.layernorm" }),
  projectVision: linearSpec("vision_projection", c.qformer_config.hidden_size, c.image_text_hidden_size),
  projectText: linearSpec("text_projection", c.qformer_config.hidden_size, c.image_text_hidden_size),
  matching: linearSpec("itm_head", c.qformer_config.hidden_size, 2),
  ...(languageHead ? { language: languageHeadSpec(c.qformer_config) } : {}),
});
export type Blip2Params = Params<ReturnType<typeof blip2Spec>>;

/** Text as the Q-Former reads it. */
export type Blip2Text = { ids: tf.Tensor2D /* int32 [B, T] */; padding?: tf.Tensor2D /* int32 [B, T], 1 where a token is real */ };

const unit = (x: tf.Tensor3D): tf.Tensor3D => x.div(x.square().sum(-1, true).sqrt()) as tf.Tensor3D;

const queriesFor = (p: Blip2Params, states: tf.Tensor3D): tf.Tensor3D => p.queries.tile([states.shape[0], 1, 1]) as tf.Tensor3D;

export type Watched = { mask?: QFormerInputs["mask"]; tap?: Tap };

/**
 * A unit vector for each query of a picture, the first half of the contrastive objective. states: the picture tower's [B, N, Dv] -> [B, Q, d]
 * Taps: `image.qformer.…`.
 */
export function encodePicture(p: Blip2Params, c: Blip2Config, states: tf.Tensor3D, tap: Tap = noTap): tf.Tensor3D {
  return tf.tidy(() => {
    const inputs = { queries: queriesFor(p, states), states, mask: "contrastive" } as const;
    const x = qFormer(p.qformer, c.qformer_config, inputs, at(tap, "image")); //                       [B, Q, D]
    return unit(linear(p.projectVision, x) as tf.Tensor3D);
  });
}

/**
 * A unit vector for a text, of its first token, the second half of the contrastive objective. -> [B, d]
 * Taps: `text.qformer.…`.
 */
export function encodeWords(p: Blip2Params, c: Blip2Config, { ids, padding }: Blip2Text, tap: Tap = noTap): tf.Tensor2D {
  return tf.tidy(() => {
    const x = qFormer(p.qformer, c.qformer_config, { ids, padding, mask: "contrastive" }, at(tap, "text")); // [B, T, D]
    const y = unit(linear(p.projectText, x.slice([0, 0, 0], [-1, 1, -1])) as tf.Tensor3D); //          [B, 1, d]
    return y.reshape([ids.shape[0], c.image_text_hidden_size]);
  });
}

/** Cosine of each text with the picture's query that is nearest to it. pictures: [B, Q, d], texts: [T, d], of length 1 -> [B, T] */
export const similarities = (pictures: tf.Tensor3D, texts: tf.Tensor2D): tf.Tensor2D =>
  tf.tidy(() => {
    const [B, Q, d] = pictures.shape;
    return tf
      .matMul(pictures.reshape([B * Q, d]) as tf.Tensor2D, texts, false, true)
      .reshape([B, Q, texts.shape[0]])
      .max(1) as tf.Tensor2D;
  });

/** Temperature of the contrastive loss: what the authors' training begins with. */
export const TEMPERATURE = 0.07;

/** Symmetric cross-entropy of matching rows (ITC). similarities: [B, B] -> scalar */
export function contrastiveLoss(cosines: tf.Tensor2D, temperature: number | tf.Scalar = TEMPERATURE): tf.Scalar {
  return tf.tidy(() => {
    const logits = cosines.div(temperature) as tf.Tensor2D;
    const labels = tf.range(0, logits.shape[0], 1, "int32");
    return crossEntropy(logits, labels)
      .add(crossEntropy(logits.transpose() as tf.Tensor2D, labels))
      .div(2) as tf.Scalar;
  });
}

/**
 * Whether picture and text belong together: [no, yes] of each pair, the mean over queries. states: [B, N, Dv] -> [B, 2]
 * Taps: `qformer.…`.
 *
 * @param mask of the self-attention; default: "matching"
 */
export function matchingLogits(
  p: Blip2Params,
  c: Blip2Config,
  states: tf.Tensor3D,
  { ids, padding }: Blip2Text,
  { mask, tap = noTap }: Watched = {},
): tf.Tensor2D {
  return tf.tidy(() => {
    const x = qFormer(p.qformer, c.qformer_config, { queries: queriesFor(p, states), states, ids, padding, mask: mask ?? "matching" }, tap);
    return linear(p.matching, queryRows(x, c.num_query_tokens)).mean(1) as tf.Tensor2D;
  });
}

/** Cross-entropy of pairs (ITM). logits: [B, 2], labels: int32 [B], 1 where a pair matches -> scalar */
export const matchingLoss = (logits: tf.Tensor2D, labels: tf.Tensor1D): tf.Scalar => crossEntropy(logits, labels);

/**
 * The next word at every place of a text that goes with a picture. states: [B, N, Dv] -> [B, T, V]
 * Taps: `qformer.…`.
 *
 * @param mask of the self-attention; default: "generation". Under another one a token may see what it is to say.
 * @throws when the checkpoint has no language head
 */
export function wordLogits(
  p: Blip2Params,
  c: Blip2Config,
  states: tf.Tensor3D,
  { ids, padding }: Blip2Text,
  { mask, tap = noTap }: Watched = {},
): tf.Tensor3D {
  const { language } = p;
  if (!language) throw new Error("this checkpoint has no language head (cls.predictions.…); image-grounded generation needs one");
  return tf.tidy(() => {
    const Q = c.num_query_tokens;
    const x = qFormer(
      p.qformer,
      c.qformer_config,
      { queries: queriesFor(p, states), states, ids, padding, mask: mask ?? "generation" },
      tap,
    );
    return languageLogits(language, p.qformer.words!, c.qformer_config, x.slice([0, Q, 0], [-1, -1, -1]));
  });
}

/** Cross-entropy of each next token, over real ones (LM). logits: [B, T, V] -> scalar */
export function wordLoss(logits: tf.Tensor3D, { ids, padding }: Blip2Text): tf.Scalar {
  return tf.tidy(() => {
    const [B, T, V] = logits.shape;
    const next = ids.slice([0, 1], [B, T - 1]);
    const labels = padding ? tf.where(padding.slice([0, 1], [B, T - 1]).equal(1), next, tf.fill([B, T - 1], IGNORED, "int32")) : next;
    return crossEntropy(logits.slice([0, 0, 0], [B, T - 1, V]), labels);
  });
}
