/** A T5's config and its feed-forward part, which the config chooses: ReLU in T5 1.0, a gate with GELU's tanh form in T5 1.1 and Flan-T5. */
import type { tf } from "../engine/tf";
import { activationName, activations, type GatedName, gatedMlp, gatedNames, mlp, projectionSpec } from "../nn/layers";
import type { Params } from "../nn/spec";
import type { Tap } from "../nn/tap";
import { checkKnown, readConfig } from "./config";

const DEFAULTS = {
  vocab_size: 32128,
  d_model: 512,
  d_kv: 64,
  d_ff: 2048,
  num_layers: 6,
  num_heads: 8,
  relative_attention_num_buckets: 32,
  relative_attention_max_distance: 128,
  layer_norm_epsilon: 1e-6,
  feed_forward_proj: "relu",
  decoder_start_token_id: 0,
};
export type T5Config = typeof DEFAULTS & {
  num_decoder_layers: number;
  /** The head is no copy of the embedding table. */
  own_head: boolean;
  scale_decoder_outputs: boolean;
  act: string;
  gated: boolean;
};

const UNUSED =
  "num_decoder_layers scale_decoder_outputs is_gated_act dense_act_fn dropout_rate classifier_dropout n_positions output_past eos_token_id".split(
    " ",
  );

type Raw = { num_decoder_layers?: number; scale_decoder_outputs?: boolean; tie_word_embeddings?: boolean };

/**
 * A T5's part of config.json -> config with every value present.
 *
 * @param ownHead whether the weights hold an `lm_head`: Flan-T5's do, whatever `tie_word_embeddings` says
 * @throws listing unhandled keys and impossible sizes
 */
export function t5Config(raw: unknown, ownHead: boolean, where = "config.json: text_config"): T5Config {
  const c = readConfig(raw, DEFAULTS, where, UNUSED) as typeof DEFAULTS;
  const given = (raw ?? {}) as Raw;
  const [first, second] = c.feed_forward_proj.split("-");
  const gated = first === "gated" && second !== undefined;
  // transformers takes the tanh form for "gated-gelu" (configuration_t5.py)
  const act = c.feed_forward_proj === "gated-gelu" ? "gelu_new" : (second ?? first);
  checkKnown(`${where}: feed_forward_proj`, act, gated ? gatedNames : Object.keys(activations));
  const { num_decoder_layers } = readConfig(
    { num_decoder_layers: given.num_decoder_layers ?? null },
    { num_decoder_layers: c.num_layers },
    where,
  );
  const scale_decoder_outputs = given.scale_decoder_outputs ?? given.tie_word_embeddings !== false;
  return { ...c, num_decoder_layers, own_head: ownHead, scale_decoder_outputs, act, gated };
}

/** One of the two; the other's names are not in the file. */
export const feedForwardSpec = (name: string, { d_model: D, d_ff: F, gated }: T5Config) =>
  gated
    ? {
        gate: projectionSpec(`${name}.wi_0`, D, F),
        up: projectionSpec(`${name}.wi_1`, D, F),
        down: projectionSpec(`${name}.wo`, F, D),
      }
    : { fc1: projectionSpec(`${name}.wi`, D, F), fc2: projectionSpec(`${name}.wo`, F, D) };
type FeedForward = Params<ReturnType<typeof feedForwardSpec>>;

/** x: [B, N, D] -> [B, N, D], added to `onto` where it is given */
export const feedForward = (p: FeedForward, c: T5Config, x: tf.Tensor3D, tap: Tap, onto?: tf.Tensor3D): tf.Tensor3D =>
  p.gate ? gatedMlp(p, x, tap, onto, c.act as GatedName) : mlp(p, x, activationName(c.act), tap, onto);
