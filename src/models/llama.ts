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
  type Attention,
  attention,
  embedding,
  type FusedAttention,
  type FusedGatedMlp,
  fusedAttention,
  fusedGatedMlp,
  type GatedMlp,
  gatedMlp,
  type Linear,
  linear,
  linearSpec,
  type Mask,
  projectionSpec,
  type RmsNorm,
  rmsNorm,
  rmsNormSpec,
  rotate,
} from "../nn/layers";
import { attentionMask } from "../nn/masks";
import type { Rotary } from "../nn/rope";
import { type RopeConfig, rotaryParameters } from "../nn/rope-scaling";
import { matrix, repeat } from "../nn/spec";
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
};
/** Keys that are read apart, or change nothing. */
const APART =
  "attention_dropout sliding_window max_window_layers use_sliding_window layer_types head_dim num_key_value_heads rope_theta rope_scaling rope_parameters partial_rotary_factor original_max_position_embeddings mlp_bias pretraining_tp eos_token_id".split(
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
  /** For each layer how many of the last tokens a token sees; undefined: all. */
  windows: (number | undefined)[];
  /** Where queries, keys and values are one product, in how many parts it lies: see `fusedAttention`. */
  parts: number;
  /** The keys of the rotary positions, as the file has them. */
  rope: RopeConfig;
};

/** The keys of sliding windows: Qwen2's three and transformers' list of kinds, which says the same layer by layer. */
type WindowConfig = { sliding_window?: number | null; max_window_layers?: number; layer_types?: string[] | null };

function windowsOf({ sliding_window, max_window_layers = 0, layer_types }: WindowConfig, layers: number, where: string) {
  if (!Number.isInteger(sliding_window) || sliding_window! < 1)
    throw new Error(`${where}: sliding_window is ${JSON.stringify(sliding_window)}, expected a whole number from 1`);
  const slides = (i: number) => (layer_types ? layer_types[i] === "sliding_attention" : i >= max_window_layers);
  return Array.from({ length: layers }, (_, i) => (slides(i) ? sliding_window! : undefined));
}

export type LlamaFamily = {
  qkv_bias: boolean;
  qk_norm?: boolean;
  /** What `tie_word_embeddings` is where the part itself does not say. */
  tied: boolean;
  /** Whether `sliding_window` counts: "asked" only with `use_sliding_window` (Qwen2), "always" in every layer (Mistral, Phi-3). */
  window?: "asked" | "always";
};

/**
 * A language model's part of config.json -> config with every value present.
 *
 * @throws listing unhandled keys and impossible sizes
 */
export function llamaConfig(raw: unknown, where: string, { window = "asked", ...how }: LlamaFamily): LlamaConfig {
  const c = readConfig(raw, DEFAULTS, where, APART) as typeof DEFAULTS;
  const own = (raw ?? {}) as WindowConfig & { use_sliding_window?: boolean };
  const slides = window === "always" ? typeof own.sliding_window === "number" : own.use_sliding_window === true;
  const range = window === "always" ? { sliding_window: own.sliding_window } : own;
  const windows = slides ? windowsOf(range, c.num_hidden_layers, where) : Array<undefined>(c.num_hidden_layers).fill(undefined);
  const rope = (raw ?? {}) as RopeConfig & { num_key_value_heads?: number; tie_word_embeddings?: boolean };
  checkKnown(`${where}: hidden_act`, c.hidden_act, ["silu"]);
  const head_dim = rope.head_dim ?? c.hidden_size / c.num_attention_heads;
  if (!Number.isInteger(head_dim)) checkHeads(where, c);
  const num_key_value_heads = rope.num_key_value_heads ?? c.num_attention_heads;
  if (c.num_attention_heads % num_key_value_heads !== 0)
    throw new Error(
      `${where}: num_attention_heads ${c.num_attention_heads} do not divide among num_key_value_heads ${num_key_value_heads}`,
    );
  const tie_word_embeddings = rope.tie_word_embeddings ?? how.tied;
  return { ...c, qk_norm: false, ...how, windows, parts: 1, head_dim, num_key_value_heads, tie_word_embeddings, rope };
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
/** A decoder's weights, whichever family's spec has named them. */
export type Llama = {
  token: tf.Tensor2D;
  blocks: LlamaBlock[];
  norm: RmsNorm;
  head?: Linear;
};
type LlamaBlock = {
  ln1: RmsNorm;
  attn: (Attention | FusedAttention) & { qNorm?: RmsNorm; kNorm?: RmsNorm };
  ln2: RmsNorm;
  mlp: GatedMlp | FusedGatedMlp;
};

/** Rotary positions; `at` gives those for texts of a length, where the scaling depends on it, as new tensors. */
export type LlamaRotary = Rotary & { at?(length: number): Rotary | undefined };

/** The rotary positions of a config as a tensor, which belongs to the caller. */
export function llamaRotary({ rope }: LlamaConfig): LlamaRotary {
  const asTensor = ({ inverseFrequencies, attentionFactor }: ReturnType<typeof rotaryParameters>): Rotary => ({
    inverseFrequencies: tf.tensor1d(inverseFrequencies),
    attentionFactor,
  });
  const scaling = { ...rope.rope_scaling, ...rope.rope_parameters };
  const type = scaling.rope_type ?? scaling.type;
  const base = asTensor(rotaryParameters(rope));
  if (type !== "dynamic" && type !== "longrope") return base;
  const trained = rope.original_max_position_embeddings ?? scaling.original_max_position_embeddings;
  const longest = (type === "dynamic" ? undefined : trained) ?? rope.max_position_embeddings!;
  return { ...base, at: (length) => (length > longest ? asTensor(rotaryParameters(rope, length)) : undefined) };
}

export type LlamaInputs = {
  /** What stands at each position: token embeddings, or an image's features. [B, N, D] */
  embeddings: tf.Tensor3D;
  rotary: LlamaRotary;
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

function block(p: LlamaBlock, { c, rotary, tap, cache }: At, x: tf.Tensor3D, positions: tf.Tensor2D, mask: Mask): tf.Tensor3D {
  const norm = (weights: RmsNorm) => (x: tf.Tensor3D) => rmsNorm(weights, x, c.rms_norm_eps);
  const { qNorm, kNorm } = p.attn;
  const norms = qNorm && kNorm && { q: norm(qNorm), k: norm(kNorm) };
  const [heads, groups] = [c.num_attention_heads, c.num_key_value_heads];
  const shape = { heads, groups, norms, rotary: rotate(rotary, positions), cache, mask, tap: at(tap, "attn") };
  const attend = (y: tf.Tensor3D, onto?: tf.Tensor3D) =>
    "qkv" in p.attn ? fusedAttention(p.attn, y, { ...shape, parts: c.parts, onto }) : attention(p.attn, y, { ...shape, onto });
  const feed = (y: tf.Tensor3D, onto?: tf.Tensor3D) =>
    "gateUp" in p.mlp ? fusedGatedMlp(p.mlp, y, at(tap, "mlp"), onto) : gatedMlp(p.mlp, y, at(tap, "mlp"), onto);
  x = tap("resid_pre", x);
  x = tap(
    "resid_mid",
    add(x, "attn_out", tap, (onto) => attend(norm(p.ln1)(x), onto)),
  );
  return tap(
    "resid_post",
    add(x, "mlp_out", tap, (onto) => feed(norm(p.ln2)(x), onto)),
  );
}

/**
 * The normalised residual stream behind the last block. [B, N, D] -> [B, N, D]
 * Taps: `blocks.N.{resid_pre,attn.{q,k,v,attn_scores,pattern,z},attn_out,resid_mid,mlp.{pre,pre_linear,post},mlp_out,resid_post}`, `final`.
 * Where the rotary scaling depends on the length, keys in a cache keep the turns of the length that they came with, as in transformers.
 */
export function llama(p: Llama, c: LlamaConfig, inputs: LlamaInputs): tf.Tensor3D {
  const { embeddings, padding, cache, tap = noTap, checkpointing } = inputs;
  return tf.tidy(() => {
    const [first, N] = [cache?.length ?? 0, embeddings.shape[1]];
    const positions = inputs.positions ?? (tf.range(first, first + N, 1, "int32").expandDims(0) as tf.Tensor2D);
    const scaled = inputs.rotary.at?.(inputs.positions ? inputs.positions.max().dataSync()[0] + 1 : first + N);
    const rotary = scaled ?? inputs.rotary;
    const biasOf = windowBiases(N, first + N);
    let x = embeddings;
    p.blocks.forEach((layer, i) => {
      const here = { c, rotary, tap: at(tap, `blocks.${i}`), cache: cache && cacheLayer(cache, i) };
      const bias = biasOf(c.windows[i]);
      type Inputs = { x: tf.Tensor3D; positions: tf.Tensor2D; padding?: tf.Tensor2D; bias?: tf.Tensor4D };
      const compute = ({ x, positions, padding, bias }: Inputs) => block(layer, here, x, positions, { causal: true, padding, bias });
      const run = () => asBlock(layer, { x, positions, padding, bias }, compute, { tap: here.tap, checkpointing });
      const single = cache && N === 1 && !padding && !bias && !scaled && tap === noTap;
      x = single ? nextToken(cache, i, layer, { x, positions }, [rotary.inverseFrequencies], run) : run();
    });
    if (cache) cache.length += N;
    return tap("final", rmsNorm(p.norm, x, c.rms_norm_eps));
  });
}

/** What hides the tokens before a window, made once for each window; undefined where it reaches all of them. */
function windowBiases(queries: number, keys: number): (window: number | undefined) => tf.Tensor4D | undefined {
  const made = new Map<number, tf.Tensor4D>();
  return (window) => {
    if (window === undefined || keys <= window) return undefined;
    const bias = made.get(window) ?? attentionMask({ queries, keys, causal: true, window })!;
    made.set(window, bias);
    return bias;
  };
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
