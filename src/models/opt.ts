/**
 * OPT (Zhang et al. 2022): a decoder with learned positions and a ReLU feed-forward part, the language model of the first BLIP-2. Norms stand before
 * each part, in the 350M model behind. Numbers as transformers/models/opt/modeling_opt.py; names of weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { asBlock } from "../nn/block";
import { type Cache, cacheLayer, makeCache, nextToken } from "../nn/cache";
import {
  activationName,
  activations,
  add,
  attention,
  embedding,
  layerNorm,
  linear,
  linearSpec,
  type Mask,
  mlp,
  normSpec,
  projectionSpec,
} from "../nn/layers";
import { matrix, type Params, repeat, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";
import type { DecoderInputs, LanguageModel } from "./loaded";

const DEFAULTS = {
  vocab_size: 50272,
  hidden_size: 768,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  ffn_dim: 3072,
  max_position_embeddings: 2048,
  do_layer_norm_before: true,
  _remove_final_layer_norm: false,
  layer_norm_elementwise_affine: true,
  enable_bias: true,
  activation_function: "relu",
  tie_word_embeddings: true,
};
export type OptConfig = typeof DEFAULTS & {
  /** Width of the embedding table, where that is not hidden_size (OPT-350M). */
  word_embed_proj_dim: number;
};

const UNUSED = ["layerdrop", "init_std", "eos_token_id"];
/** Rows of the position table that no position uses (modeling_opt.py: OPTLearnedPositionalEmbedding). */
const OFFSET = 2;
const EPS = 1e-5;

/** A language model's part of config.json -> config with every value present. @throws listing unhandled keys and impossible sizes */
export function optConfig(raw: unknown, where = "config.json: text_config"): OptConfig {
  const { word_embed_proj_dim, ...rest } = (raw ?? {}) as { [key: string]: unknown };
  const c = readConfig(rest, DEFAULTS, where, UNUSED) as typeof DEFAULTS;
  checkHeads(where, c);
  checkKnown(`${where}: activation_function`, c.activation_function, Object.keys(activations));
  if (!c.layer_norm_elementwise_affine)
    throw new Error(`${where}: layer_norm_elementwise_affine false is not handled here; it changes what the model computes`);
  const table = readConfig({ word_embed_proj_dim: word_embed_proj_dim ?? null }, { word_embed_proj_dim: c.hidden_size }, where);
  return { ...c, ...table };
}

const blockSpec = (name: string, c: OptConfig) => {
  const { hidden_size: D, ffn_dim: F } = c;
  const layer = (part: string, inner: number, out: number) =>
    (c.enable_bias ? linearSpec : projectionSpec)(`${name}.${part}`, inner, out) as ReturnType<typeof projectionSpec>;
  return {
    ln1: normSpec(`${name}.self_attn_layer_norm`, D),
    attn: {
      q: layer("self_attn.q_proj", D, D),
      k: layer("self_attn.k_proj", D, D),
      v: layer("self_attn.v_proj", D, D),
      out: layer("self_attn.out_proj", D, D),
    },
    ln2: normSpec(`${name}.final_layer_norm`, D),
    mlp: { fc1: layer("fc1", D, F), fc2: layer("fc2", F, D) },
  };
};

const narrows = (c: OptConfig): boolean => c.word_embed_proj_dim !== c.hidden_size;

/** Every weight by its name in the file. prefix: "" or "language_model.". A tied head is the embedding table itself. */
export const optSpec = (c: OptConfig, prefix = "") => {
  const [name, D, E] = [`${prefix}model.decoder`, c.hidden_size, c.word_embed_proj_dim];
  return {
    token: matrix(`${name}.embed_tokens.weight`, [c.vocab_size, E]),
    position: w(`${name}.embed_positions.weight`, [c.max_position_embeddings + OFFSET, D]),
    ...(narrows(c) ? { enter: projectionSpec(`${name}.project_in`, E, D), leave: projectionSpec(`${name}.project_out`, D, E) } : {}),
    blocks: repeat(c.num_hidden_layers, (i) => blockSpec(`${name}.layers.${i}`, c)),
    ...(c.do_layer_norm_before && !c._remove_final_layer_norm ? { norm: normSpec(`${name}.final_layer_norm`, D) } : {}),
    ...(c.tie_word_embeddings ? {} : { head: projectionSpec(`${prefix}lm_head`, E, c.vocab_size) }),
  };
};
export type Opt = Params<ReturnType<typeof optSpec>>;
type Block = Opt["blocks"][number];

/** Position of each token among those that are real, from 0; -1 at padding. padding: int32 [B, all] -> int32 [B, N], of the tokens from `first` on */
function positionsOf(first: number, N: number, padding?: tf.Tensor2D): tf.Tensor2D {
  if (!padding) return tf.range(first, first + N, 1, "int32").expandDims(0) as tf.Tensor2D;
  const counted = tf.cumsum(padding, 1).mul(padding).sub(tf.scalar(1, "int32")) as tf.Tensor2D;
  return counted.slice([0, first], [padding.shape[0], N]).cast("int32");
}

type At = { c: OptConfig; tap: Tap; cache?: ReturnType<typeof cacheLayer> };

function block(p: Block, { c, tap, cache }: At, x: tf.Tensor3D, mask: Mask): tf.Tensor3D {
  const { do_layer_norm_before: before, num_attention_heads: heads } = c;
  const behind = (norm: Block["ln1"], y: tf.Tensor3D) => (before ? y : layerNorm(norm, y, EPS, true));
  x = tap("resid_pre", x);
  const seen = before ? layerNorm(p.ln1, x, EPS) : x;
  const attended = add(x, "attn_out", tap, (onto) => attention(p.attn, seen, { heads, cache, mask, tap: at(tap, "attn"), onto }));
  x = tap("resid_mid", behind(p.ln1, attended));
  const read = before ? layerNorm(p.ln2, x, EPS) : x;
  const fed = add(x, "mlp_out", tap, (onto) => mlp(p.mlp, read, activationName(c.activation_function), at(tap, "mlp"), onto));
  return tap("resid_post", behind(p.ln2, fed));
}

/**
 * The state that the head reads. embeddings: [B, N, word_embed_proj_dim] -> the same shape
 * Taps: `embed` (with positions), `blocks.N.{resid_pre,attn.{q,k,v,attn_scores,pattern,z},attn_out,resid_mid,mlp.{pre,post},mlp_out,resid_post}`, `final`.
 *
 * @throws RangeError when a token's position is beyond `max_position_embeddings`
 */
export function opt(p: Opt, c: OptConfig, inputs: Omit<DecoderInputs, "encoded">): tf.Tensor3D {
  const { embeddings, padding, cache, tap = noTap, checkpointing } = inputs;
  const [first, N] = [cache?.length ?? 0, embeddings.shape[1]];
  if (first + N > c.max_position_embeddings)
    throw new RangeError(`OPT: ${first + N} tokens, but its positions reach ${c.max_position_embeddings} (max_position_embeddings)`);
  return tf.tidy(() => {
    const positions = (inputs.positions ?? positionsOf(first, N, padding)).add(tf.scalar(OFFSET, "int32")) as tf.Tensor2D;
    const wide = (p.enter ? linear(p.enter, embeddings) : embeddings) as tf.Tensor3D;
    let x = tap("embed", wide.add(embedding(p.position, positions)) as tf.Tensor3D); //               [B, N, D]
    p.blocks.forEach((layer, i) => {
      const here = { c, tap: at(tap, `blocks.${i}`), cache: cache && cacheLayer(cache, i) };
      const compute = ({ x, padding }: { x: tf.Tensor3D; padding?: tf.Tensor2D }) => block(layer, here, x, { causal: true, padding });
      const run = () => asBlock(layer, { x, padding }, compute, { tap: here.tap, checkpointing });
      const single = cache && N === 1 && !padding && tap === noTap;
      x = single ? nextToken(cache, i, layer, { x }, [], run) : run();
    });
    if (cache) cache.length += N;
    if (p.norm) x = layerNorm(p.norm, x, EPS);
    return tap("final", (p.leave ? linear(p.leave, x) : x) as tf.Tensor3D);
  });
}

/** OPT as what `generate` drives. endTokens: of `end-tokens.ts` */
export function optLanguage(p: Opt, c: OptConfig, endTokens: number[]): LanguageModel {
  const headWeight = p.head?.weight ?? p.token;
  return {
    vocabSize: c.vocab_size,
    hiddenSize: c.word_embed_proj_dim,
    contextLength: c.max_position_embeddings,
    layers: c.num_hidden_layers,
    endTokens,
    embed: (ids) => embedding(p.token, ids),
    forward: ({ encoded: _, ...inputs }) => opt(p, c, inputs),
    logits: (hidden) => headLogits(headWeight, hidden),
    headWeight,
    makeCache: (room): Cache => makeCache(c.num_hidden_layers, room),
  };
}

/** Scores of every token of the vocabulary. weight: [V, D], hidden: [B, N, D] -> [B, N, V] */
export const headLogits = (weight: tf.Tensor2D, hidden: tf.Tensor3D): tf.Tensor3D =>
  asBlock({ weight }, { x: hidden }, ({ x }) => linear({ weight }, x, { wide: true }) as tf.Tensor3D);
