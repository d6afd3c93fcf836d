/**
 * The language models behind most vision-language models: Llama (Touvron et al. 2023), Qwen2, which adds biases to q, k and v (Yang et al. 2024), and
 * Qwen3, which drops them and normalises queries and keys head by head (Yang et al. 2025).
 * RMS norm before, rotary positions, key heads shared by query heads, a gated feed-forward part. Numbers as
 * transformers/models/{llama,qwen2,qwen3}/modeling_*.py; names of weights and config keys as in their checkpoints.
 */
import { tf } from "../engine/tf";
import { asBlock } from "../nn/block";
import { type Cache, cacheLayer, nextToken } from "../nn/cache";
import {
  add,
  attention,
  embedding,
  gatedMlp,
  linear,
  linearSpec,
  type Mask,
  projectionSpec,
  type RmsNorm,
  rmsNorm,
  rmsNormSpec,
  rotate,
} from "../nn/layers";
import type { Rotary } from "../nn/rope";
import { type RopeConfig, rotaryParameters } from "../nn/rope-scaling";
import { matrix, type Params, repeat } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";

const DEFAULTS = {
  vocab_size: 151936,
  hidden_size: 4096,
  intermediate_size: 22016,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  max_position_embeddings: 32768,
  rms_norm_eps: 1e-6,
  hidden_act: "silu",
  use_sliding_window: false,
};
/** Keys that change nothing here: sliding_window and max_window_layers count only with use_sliding_window, layer_types repeats what these say. */
const UNUSED =
  "attention_dropout sliding_window max_window_layers layer_types head_dim num_key_value_heads rope_theta rope_scaling rope_parameters mlp_bias pretraining_tp eos_token_id".split(
    " ",
  );

export type LlamaConfig = typeof DEFAULTS & {
  num_key_value_heads: number;
  head_dim: number;
  tie_word_embeddings: boolean;
  /** Biases of q, k and v: Qwen2's. */
  qkv_bias: boolean;
  /** Queries and keys normalised head by head: Qwen3's. */
  qk_norm: boolean;
  /** The keys of the rotary positions, as the file has them. */
  rope: RopeConfig;
};

/**
 * A language model's part of config.json -> config with every value present.
 *
 * @param how qkv_bias and qk_norm of the family; tied: what `tie_word_embeddings` is where the part itself does not say
 * @throws listing unhandled keys and impossible sizes
 */
export function llamaConfig(raw: unknown, where: string, how: { qkv_bias: boolean; qk_norm?: boolean; tied: boolean }): LlamaConfig {
  const c = readConfig(raw, DEFAULTS, where, UNUSED) as typeof DEFAULTS;
  const rope = (raw ?? {}) as RopeConfig & { num_key_value_heads?: number; tie_word_embeddings?: boolean };
  checkKnown(`${where}: hidden_act`, c.hidden_act, ["silu"]);
  if (c.use_sliding_window) throw new Error(`${where}: use_sliding_window true is not handled here; it changes what the model computes`);
  const head_dim = rope.head_dim ?? c.hidden_size / c.num_attention_heads;
  if (!Number.isInteger(head_dim)) checkHeads(where, c);
  const num_key_value_heads = rope.num_key_value_heads ?? c.num_attention_heads;
  if (c.num_attention_heads % num_key_value_heads !== 0)
    throw new Error(
      `${where}: num_attention_heads ${c.num_attention_heads} do not divide among num_key_value_heads ${num_key_value_heads}`,
    );
  return { ...c, qk_norm: false, ...how, head_dim, num_key_value_heads, tie_word_embeddings: rope.tie_word_embeddings ?? how.tied, rope };
}

const blockSpec = (name: string, c: LlamaConfig) => {
  const { hidden_size: D, intermediate_size: F, head_dim } = c;
  const [heads, groups] = [c.num_attention_heads * head_dim, c.num_key_value_heads * head_dim];
  const qkv = (part: string, out: number) =>
    (c.qkv_bias ? linearSpec : projectionSpec)(`${name}.self_attn.${part}`, D, out) as ReturnType<typeof projectionSpec>;
  return {
    ln1: rmsNormSpec(`${name}.input_layernorm`, D),
    attn: {
      q: qkv("q_proj", heads),
      k: qkv("k_proj", groups),
      v: qkv("v_proj", groups),
      ...(c.qk_norm
        ? { qNorm: rmsNormSpec(`${name}.self_attn.q_norm`, head_dim), kNorm: rmsNormSpec(`${name}.self_attn.k_norm`, head_dim) }
        : {}),
      out: projectionSpec(`${name}.self_attn.o_proj`, heads, D),
    },
    ln2: rmsNormSpec(`${name}.post_attention_layernorm`, D),
    mlp: {
      gate: projectionSpec(`${name}.mlp.gate_proj`, D, F),
      up: projectionSpec(`${name}.mlp.up_proj`, D, F),
      down: projectionSpec(`${name}.mlp.down_proj`, F, D),
    },
  };
};

/** Every weight by its name in the file. prefix: "" or "language_model.". A tied head is the embedding table itself. */
export const llamaSpec = (c: LlamaConfig, prefix = "") => ({
  token: matrix(`${prefix}model.embed_tokens.weight`, [c.vocab_size, c.hidden_size]),
  blocks: repeat(c.num_hidden_layers, (i) => blockSpec(`${prefix}model.layers.${i}`, c)),
  norm: rmsNormSpec(`${prefix}model.norm`, c.hidden_size),
  ...(c.tie_word_embeddings ? {} : { head: projectionSpec(`${prefix}lm_head`, c.hidden_size, c.vocab_size) }),
});
export type Llama = Params<ReturnType<typeof llamaSpec>>;
type Block = Llama["blocks"][number];

/** The rotary positions of a config as a tensor, which belongs to the caller. */
export function llamaRotary(c: LlamaConfig): Rotary {
  const { inverseFrequencies, attentionFactor } = rotaryParameters(c.rope);
  return { inverseFrequencies: tf.tensor1d(inverseFrequencies), attentionFactor };
}

export type LlamaInputs = {
  /** What stands at each position: token embeddings, or an image's features. [B, N, D] */
  embeddings: tf.Tensor3D;
  rotary: Rotary;
  /** int32 [B or 1, N]; default: from the cache's length on. */
  positions?: tf.Tensor2D;
  /** int32 [B, all tokens, those of the cache included], 1 where a token is real. */
  padding?: tf.Tensor2D;
  /** Grows by N. Not with gradients. */
  cache?: Cache;
  tap?: Tap;
  /** Blocks are computed again in the backward pass instead of kept. */
  checkpointing?: boolean;
};

type At = { c: LlamaConfig; rotary: Rotary; tap: Tap; cache?: ReturnType<typeof cacheLayer> };

function block(p: Block, { c, rotary, tap, cache }: At, x: tf.Tensor3D, positions: tf.Tensor2D, mask: Mask): tf.Tensor3D {
  const shape = { heads: c.num_attention_heads, groups: c.num_key_value_heads, rotary: rotate(rotary, positions), cache, mask };
  const { qNorm, kNorm } = p.attn;
  const norm = (weights: RmsNorm) => (x: tf.Tensor3D) => rmsNorm(weights, x, c.rms_norm_eps);
  const norms = qNorm && kNorm && { q: norm(qNorm), k: norm(kNorm) };
  x = tap("resid_pre", x);
  x = tap(
    "resid_mid",
    add(x, "attn_out", tap, (onto) =>
      attention(p.attn, rmsNorm(p.ln1, x, c.rms_norm_eps), { ...shape, norms, tap: at(tap, "attn"), onto }),
    ),
  );
  return tap(
    "resid_post",
    add(x, "mlp_out", tap, (onto) => gatedMlp(p.mlp, rmsNorm(p.ln2, x, c.rms_norm_eps), at(tap, "mlp"), onto)),
  );
}

/**
 * The normalised residual stream behind the last block. [B, N, D] -> [B, N, D]
 * Taps: `blocks.N.{resid_pre,attn.{q,k,v,attn_scores,pattern,z},attn_out,resid_mid,mlp.{pre,pre_linear,post},mlp_out,resid_post}`, `final`.
 */
export function llama(p: Llama, c: LlamaConfig, inputs: LlamaInputs): tf.Tensor3D {
  const { embeddings, rotary, padding, cache, tap = noTap, checkpointing } = inputs;
  return tf.tidy(() => {
    const first = cache?.length ?? 0;
    const positions = inputs.positions ?? (tf.range(first, first + embeddings.shape[1], 1, "int32").expandDims(0) as tf.Tensor2D);
    let x = embeddings;
    p.blocks.forEach((layer, i) => {
      const here = { c, rotary, tap: at(tap, `blocks.${i}`), cache: cache && cacheLayer(cache, i) };
      const compute = ({ x, positions, padding }: { x: tf.Tensor3D; positions: tf.Tensor2D; padding?: tf.Tensor2D }) =>
        block(layer, here, x, positions, { causal: true, padding });
      const run = () => asBlock(layer, { x, positions, padding }, compute, { tap: here.tap, checkpointing });
      const single = cache && embeddings.shape[1] === 1 && !padding && tap === noTap;
      x = single ? nextToken(cache, i, layer, { x, positions }, [rotary.inverseFrequencies], run) : run();
    });
    if (cache) cache.length += embeddings.shape[1];
    return tap("final", rmsNorm(p.norm, x, c.rms_norm_eps));
  });
}

/** The embeddings of tokens. ids: int32 [B, N] -> [B, N, D] */
export const embedTokens = (p: Llama, ids: tf.Tensor2D): tf.Tensor3D => embedding(p.token, ids);

/** The matrix of the head: its own, or the embedding table. [V, D] */
export const headWeight = (p: Llama): tf.Tensor2D => p.head?.weight ?? p.token;

/** Scores of every token of the vocabulary. x: [B, N, D] -> [B, N, V] */
export function llamaLogits(p: Llama, x: tf.Tensor3D): tf.Tensor3D {
  const head = { weight: headWeight(p) };
  return asBlock(head, { x }, ({ x }) => linear(head, x, { wide: true }) as tf.Tensor3D);
}
