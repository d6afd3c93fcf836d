/**
 * T5 (Raffel et al. 2020) and Flan-T5: an encoder that reads a prompt, and a decoder that writes the answer while looking at what the encoder made.
 * RMS norms before each part; positions only as a learned bias of each head for the distance between two tokens, shared by the blocks of a stack; scores
 * are not divided by the root of the width. Numbers as transformers/models/t5/modeling_t5.py; names as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { asBlock, forBlocks } from "../nn/block";
import { cacheLayer, makeCache, readOnce } from "../nn/cache";
import { add, attention, embedding, keysAndValues, type Mask, projectionSpec, rmsNorm, rmsNormSpec } from "../nn/layers";
import { matrix, type Params, repeat, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import type { DecoderInputs, LanguageModel } from "./loaded";
import { headLogits } from "./opt";
import { positionBias } from "./t5-buckets";
import { feedForward, feedForwardSpec, type T5Config } from "./t5-config";

const attentionSpec = (name: string, { d_model: D, d_kv, num_heads }: T5Config) => ({
  q: projectionSpec(`${name}.q`, D, num_heads * d_kv),
  k: projectionSpec(`${name}.k`, D, num_heads * d_kv),
  v: projectionSpec(`${name}.v`, D, num_heads * d_kv),
  out: projectionSpec(`${name}.o`, num_heads * d_kv, D),
});

const encoderBlockSpec = (name: string, c: T5Config) => ({
  ln1: rmsNormSpec(`${name}.layer.0.layer_norm`, c.d_model),
  attn: attentionSpec(`${name}.layer.0.SelfAttention`, c),
  ln2: rmsNormSpec(`${name}.layer.1.layer_norm`, c.d_model),
  mlp: feedForwardSpec(`${name}.layer.1.DenseReluDense`, c),
});

const decoderBlockSpec = (name: string, c: T5Config) => ({
  ln1: rmsNormSpec(`${name}.layer.0.layer_norm`, c.d_model),
  attn: attentionSpec(`${name}.layer.0.SelfAttention`, c),
  lnCross: rmsNormSpec(`${name}.layer.1.layer_norm`, c.d_model),
  cross: attentionSpec(`${name}.layer.1.EncDecAttention`, c),
  ln2: rmsNormSpec(`${name}.layer.2.layer_norm`, c.d_model),
  mlp: feedForwardSpec(`${name}.layer.2.DenseReluDense`, c),
});

const stackSpec = <B>(name: string, layers: number, c: T5Config, block: (name: string, c: T5Config) => B) => ({
  bias: w(`${name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight`, [c.relative_attention_num_buckets, c.num_heads]),
  blocks: repeat(layers, (i) => block(`${name}.block.${i}`, c)),
  norm: rmsNormSpec(`${name}.final_layer_norm`, c.d_model),
});

/** Every weight by its name in the file. prefix: "" or "language_model.". Without a head of its own the head is the embedding table. */
export const t5Spec = (c: T5Config, prefix = "") => ({
  token: matrix(`${prefix}shared.weight`, [c.vocab_size, c.d_model]),
  encoder: stackSpec(`${prefix}encoder`, c.num_layers, c, encoderBlockSpec),
  decoder: stackSpec(`${prefix}decoder`, c.num_decoder_layers, c, decoderBlockSpec),
  ...(c.own_head ? { head: projectionSpec(`${prefix}lm_head`, c.d_model, c.vocab_size) } : {}),
});
export type T5 = Params<ReturnType<typeof t5Spec>>;
type Block = T5["encoder"]["blocks"][number] & Partial<T5["decoder"]["blocks"][number]>;

/** Copies of the embedding table, which some files hold too. */
export const t5Ignored = /(encoder|decoder)\.embed_tokens\.weight$/;

type Here = { c: T5Config; tap: Tap; cache?: ReturnType<typeof cacheLayer>; keyed?: () => ReturnType<typeof readOnce> };
type Inputs = { x: tf.Tensor3D; bias: tf.Tensor4D; padding?: tf.Tensor2D; states?: tf.Tensor3D; statesPadding?: tf.Tensor2D };

function block(p: Block, { c, tap, cache, keyed }: Here, causal: boolean, inputs: Inputs): tf.Tensor3D {
  const { bias, padding, states, statesPadding } = inputs;
  const shape = { heads: c.num_heads, scale: 1 };
  const attend = (attn: Block["attn"], norm: Block["ln1"], x: tf.Tensor3D, name: string, how: { mask: Mask; [key: string]: unknown }) =>
    add(x, `${name}_out`, tap, (onto) =>
      attention(attn, rmsNorm(norm, x, c.layer_norm_epsilon), { ...shape, ...how, tap: at(tap, name), onto }),
    );
  let x = tap("resid_pre", inputs.x);
  x = tap("resid_mid", attend(p.attn, p.ln1, x, "attn", { mask: { causal, bias, padding }, cache }));
  if (p.cross)
    x = tap(
      "resid_mid_cross",
      attend(p.cross, p.lnCross!, x, "cross_attn", { mask: { padding: statesPadding }, states, keyed: keyed?.() }),
    );
  return tap(
    "resid_post",
    add(x, "mlp_out", tap, (onto) => feedForward(p.mlp, c, rmsNorm(p.ln2, x, c.layer_norm_epsilon), at(tap, "mlp"), onto)),
  );
}

/**
 * What the encoder makes of a prompt. embeddings: [B, M, D], padding: int32 [B, M], 1 where a token is real -> [B, M, D]
 * Taps: `encoder.position_bias`, `encoder.blocks.N.{resid_pre,attn.{q,k,v,attn_scores,pattern,z},attn_out,resid_mid,mlp.{pre,pre_linear,post},mlp_out,resid_post}`,
 * `encoder.final`.
 */
export function t5Encode(p: T5, c: T5Config, inputs: { embeddings: tf.Tensor3D; padding?: tf.Tensor2D; tap?: Tap }): tf.Tensor3D {
  const { embeddings, padding, tap = noTap } = inputs;
  const t = at(tap, "encoder");
  return tf.tidy(() => {
    const M = embeddings.shape[1];
    const bias = t("position_bias", positionBias(p.encoder.bias, c, { queries: M, keys: M, bidirectional: true }));
    let x = embeddings;
    p.encoder.blocks.forEach((layer, i) => {
      const watch = at(t, `blocks.${i}`);
      x = asBlock(layer, { x, bias, padding }, (all) => block(layer, { c, tap: watch }, false, all), { tap: watch });
    });
    return t("final", rmsNorm(p.encoder.norm, x, c.layer_norm_epsilon));
  });
}

/**
 * The state that the head reads: the decoder's, normalised, and where the head is the embedding table itself divided by the root of the width. [B, N, D]
 * Taps: `position_bias`, `blocks.N.` as the encoder's, and between `cross_attn.{q,k,v,attn_scores,pattern,z}`, `cross_attn_out`, `resid_mid_cross`; `final`.
 *
 * @throws RangeError without `encoded`
 */
export function t5Decode(p: T5, c: T5Config, inputs: DecoderInputs): tf.Tensor3D {
  const { embeddings, padding, cache, encoded, tap = noTap, checkpointing } = inputs;
  if (!encoded) throw new RangeError("T5: its decoder writes what its encoder has read; give encoded: { states: encoder.encode(…) }");
  return tf.tidy(() => {
    const [first, N] = [cache?.length ?? 0, embeddings.shape[1]];
    const bias = tap("position_bias", positionBias(p.decoder.bias, c, { queries: N, keys: first + N, bidirectional: false }));
    const states = cache ? encoded.states : forBlocks(p.decoder.blocks, encoded.states, tap);
    let x = embeddings;
    p.decoder.blocks.forEach((layer, i) => {
      const keyed = cache && (() => readOnce(cache, i, encoded.states, () => keysAndValues(layer.cross, states)));
      const here = { c, tap: at(tap, `blocks.${i}`), cache: cache && cacheLayer(cache, i), keyed };
      const all = { x, bias, padding, states, statesPadding: encoded.padding };
      x = asBlock(layer, all, (given) => block(layer, here, true, given), { tap: here.tap, checkpointing });
    });
    if (cache) cache.length += N;
    const last = rmsNorm(p.decoder.norm, x, c.layer_norm_epsilon);
    return tap("final", c.scale_decoder_outputs ? (last.mul(c.d_model ** -0.5) as tf.Tensor3D) : last);
  });
}

/** T5 as what `generate` drives: positions have no end, and `positions` of the inputs play no part. endTokens: of `end-tokens.ts` */
export function t5Language(p: T5, c: T5Config, endTokens: number[]): LanguageModel {
  const headWeight = p.head?.weight ?? p.token;
  return {
    vocabSize: c.vocab_size,
    hiddenSize: c.d_model,
    contextLength: Number.POSITIVE_INFINITY,
    layers: c.num_decoder_layers,
    endTokens,
    embed: (ids) => embedding(p.token, ids),
    forward: (inputs) => t5Decode(p, c, inputs),
    logits: (hidden) => headLogits(headWeight, hidden),
    headWeight,
    makeCache: (room) => makeCache(c.num_decoder_layers, room),
    encoder: { startToken: c.decoder_start_token_id, encode: (inputs) => t5Encode(p, c, inputs) },
  };
}
