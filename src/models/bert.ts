/**
 * BERT (Devlin et al. 2019), the text encoder of VisionTextDualEncoder, and with cross-attention to a picture in some of its layers that of ALBEF and BLIP:
 * embeddings of words, places and kinds, and blocks whose norms stand behind each part. Numbers as transformers/models/bert/modeling_bert.py; names of
 * weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { asBlock, forBlocks } from "../nn/block";
import { type Cache, cacheLayer, readOnce } from "../nn/cache";
import {
  activationName,
  activations,
  add,
  attention,
  embedding,
  keysAndValues,
  layerNorm,
  linear,
  linearSpec,
  type Mask,
  mlp,
  normSpec,
} from "../nn/layers";
import { matrix, type Params, repeat, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";

const DEFAULTS = {
  vocab_size: 30522,
  hidden_size: 768,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  intermediate_size: 3072,
  hidden_act: "gelu",
  max_position_embeddings: 512,
  type_vocab_size: 2,
  layer_norm_eps: 1e-12,
  position_embedding_type: "absolute",
};
export type BertConfig = typeof DEFAULTS;

const UNUSED = ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "eos_token_id"];

/** A BERT's part of config.json -> config with every value present. @throws listing unhandled keys and impossible sizes */
export function bertConfig(raw: unknown, where = "config.json: text_config", unused: readonly string[] = []): BertConfig {
  const c = readConfig(raw, DEFAULTS, where, [...UNUSED, ...unused]) as BertConfig;
  checkHeads(where, c);
  checkKnown(`${where}: hidden_act`, c.hidden_act, Object.keys(activations));
  checkKnown(`${where}: position_embedding_type`, c.position_embedding_type, ["absolute"]);
  return c;
}

/** What a family's BERT has besides, or has not. */
export type BertParts = {
  /** The dense layer on the first token, which tanh follows; default true. */
  pooler?: boolean;
  /** Embeddings of the first and second text; default true. */
  tokenTypes?: boolean;
  /** Width of what the layers read that `at` accepts (default all), through an attention behind their own. */
  cross?: { width: number; at?(layer: number): boolean };
};

/** Attention with the norm after its sum. states: width of what keys and values are made of. */
const attentionSpec = (name: string, D: number, states: number) => ({
  q: linearSpec(`${name}.self.query`, D, D),
  k: linearSpec(`${name}.self.key`, states, D),
  v: linearSpec(`${name}.self.value`, states, D),
  out: linearSpec(`${name}.output.dense`, D, D),
  norm: normSpec(`${name}.output.LayerNorm`, D),
});

const layerSpec = (name: string, i: number, { hidden_size: D, intermediate_size: F }: BertConfig, cross: BertParts["cross"]) => ({
  attn: attentionSpec(`${name}.attention`, D, D),
  ...(cross && (cross.at?.(i) ?? true) ? { cross: attentionSpec(`${name}.crossattention`, D, cross.width) } : {}),
  mlp: { fc1: linearSpec(`${name}.intermediate.dense`, D, F), fc2: linearSpec(`${name}.output.dense`, F, D) },
  norm: normSpec(`${name}.output.LayerNorm`, D),
});

/** Every weight by its name in the file. prefix: "text_model.", "bert.". */
export const bertSpec = (c: BertConfig, prefix: string, { pooler = true, tokenTypes = true, cross }: BertParts = {}) => ({
  word: matrix(`${prefix}embeddings.word_embeddings.weight`, [c.vocab_size, c.hidden_size]),
  position: w(`${prefix}embeddings.position_embeddings.weight`, [c.max_position_embeddings, c.hidden_size]),
  ...(tokenTypes ? { type: w(`${prefix}embeddings.token_type_embeddings.weight`, [c.type_vocab_size, c.hidden_size]) } : {}),
  norm: normSpec(`${prefix}embeddings.LayerNorm`, c.hidden_size),
  layers: repeat(c.num_hidden_layers, (i) => layerSpec(`${prefix}encoder.layer.${i}`, i, c, cross)),
  ...(pooler ? { pooler: linearSpec(`${prefix}pooler.dense`, c.hidden_size, c.hidden_size) } : {}),
});
export type Bert = Params<ReturnType<typeof bertSpec>>;
type Layer = Bert["layers"][number];

/** Buffers that files of older versions hold. */
export const bertIgnored = /embeddings\.position_ids$/;

/**
 * What the first layer reads. ids: int32 [B, N], or `words`, their rows of the table [B, N, D]; types: int32 [B, N], default 0 -> [B, N, D]
 * Tap: `embed`.
 *
 * @param first the place of the first of these tokens
 * @throws RangeError when a token's place is beyond `max_position_embeddings`
 */
export function bertEmbed(
  p: Bert,
  c: BertConfig,
  { types, first = 0, ...given }: ({ ids: tf.Tensor2D } | { words: tf.Tensor3D }) & { types?: tf.Tensor2D; first?: number },
  tap: Tap = noTap,
): tf.Tensor3D {
  const N = "ids" in given ? given.ids.shape[1] : given.words.shape[1];
  if (first + N > c.max_position_embeddings)
    throw new RangeError(`BERT: ${first + N} tokens, but its positions reach ${c.max_position_embeddings} (max_position_embeddings)`);
  return tf.tidy(() => {
    const words = "ids" in given ? embedding(p.word, given.ids) : given.words;
    let x: tf.Tensor = words.add(p.position.slice([first, 0], [N, c.hidden_size])); //  [B, N, D]
    if (p.type) x = x.add(types ? embedding(p.type, types) : p.type.slice([0, 0], [1, c.hidden_size]));
    return tap("embed", layerNorm(p.norm, x, c.layer_norm_eps) as tf.Tensor3D);
  });
}

export type BertInputs = {
  /** What `bertEmbed` gives, or the state behind some layer: [B, N, D] */
  x: tf.Tensor3D;
  /** Where a token may look. */
  mask?: Mask;
  /** What layers with cross-attention read, [B, M, width]; without it they leave that part out. */
  states?: tf.Tensor3D;
  /** int32 [B, M], 1 where a state counts. Default: all. */
  statesPadding?: tf.Tensor2D;
  /** The layers to run, from `first` to before `end`; default all. */
  first?: number;
  end?: number;
  /** Of a decoder; grows by N. Not with gradients. */
  cache?: Cache;
};

type Here = { c: BertConfig; tap: Tap; causal?: boolean; cache?: ReturnType<typeof cacheLayer>; keyed?: () => ReturnType<typeof readOnce> };
type Given = { x: tf.Tensor3D; padding?: tf.Tensor2D; bias?: tf.Tensor4D; states?: tf.Tensor3D; statesPadding?: tf.Tensor2D };

function block(p: Layer, { c, tap, causal, cache, keyed }: Here, { padding, bias, states, statesPadding, ...given }: Given): tf.Tensor3D {
  const heads = c.num_attention_heads;
  const behind = (norm: Layer["norm"], y: tf.Tensor3D) => layerNorm(norm, y, c.layer_norm_eps, true);
  const x = tap("resid_pre", given.x);
  const attended = add(x, "attn_out", tap, (onto) =>
    attention(p.attn, x, { heads, mask: { causal, padding, bias }, cache, tap: at(tap, "attn"), onto }),
  );
  let y = tap("resid_mid", behind(p.attn.norm, attended));
  const cross = states && p.cross;
  if (cross) {
    const [before, mask] = [y, { padding: statesPadding }];
    const read = add(before, "cross_attn_out", tap, (onto) =>
      attention(cross, before, { heads, mask, states, keyed: keyed?.(), tap: at(tap, "cross_attn"), onto }),
    );
    y = tap("resid_mid_cross", behind(cross.norm, read));
  }
  const fed = add(y, "mlp_out", tap, (onto) => mlp(p.mlp, y, activationName(c.hidden_act), at(tap, "mlp"), onto));
  return tap("resid_post", behind(p.norm, fed));
}

/**
 * The state behind the last layer. [B, N, D] -> [B, N, D]
 * Taps: `blocks.N.{resid_pre,attn.{q,k,v,attn_scores,pattern,z},attn_out,resid_mid,cross_attn.{…},cross_attn_out,resid_mid_cross,mlp.{pre,post},mlp_out,resid_post}`.
 */
export function bert(p: Bert, c: BertConfig, inputs: BertInputs, tap: Tap = noTap): tf.Tensor3D {
  const { mask: { causal, padding, bias } = {}, states, statesPadding, first = 0, end = p.layers.length, cache } = inputs;
  return tf.tidy(() => {
    const read = states && !cache ? forBlocks(p.layers, states, tap) : states;
    let x = inputs.x;
    for (let i = first; i < end; i++) {
      const [layer, watch] = [p.layers[i], at(tap, `blocks.${i}`)];
      const keyed = cache && states && (() => readOnce(cache, i, states, () => keysAndValues(layer.cross!, states)));
      const here = { c, tap: watch, causal, cache: cache && cacheLayer(cache, i), keyed };
      x = asBlock(layer, { x, padding, bias, states: read, statesPadding }, (given) => block(layer, here, given), { tap: watch });
    }
    if (cache) cache.length += x.shape[1];
    return x;
  });
}

/** tanh of a dense layer on the first token. [B, N, D] -> [B, D]. Tap: `pooled`. */
export const bertPool = (p: Bert, x: tf.Tensor3D, tap: Tap = noTap): tf.Tensor2D =>
  tf.tidy(() => {
    const [B, , D] = x.shape;
    return tap("pooled", linear(p.pooler!, x.slice([0, 0, 0], [B, 1, D]).reshape([B, D])).tanh() as tf.Tensor2D);
  });
