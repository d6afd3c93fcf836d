/**
 * The Q-Former: learned queries that read a picture (Li et al. 2023, "BLIP-2", section 3.1). A BERT whose queries and text share the self-attention, whose
 * queries alone look at the picture, every `cross_attention_frequency`-th layer, and where each kind has a feed-forward part of its own.
 * Numbers as transformers/models/blip_2/modeling_blip_2.py (Blip2QFormerModel); names of weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { asBlock, forBlocks } from "../nn/block";
import { activationName, activations, attention, layerNorm, linear, linearSpec, type Mask, normSpec } from "../nn/layers";
import { type Params, repeat } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";

const DEFAULTS = {
  hidden_size: 768,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  intermediate_size: 3072,
  hidden_act: "gelu",
  layer_norm_eps: 1e-12,
  vocab_size: 30522,
  max_position_embeddings: 512,
  cross_attention_frequency: 2,
  encoder_hidden_size: 1408,
  use_qformer_text_input: false,
};
export type QFormerConfig = typeof DEFAULTS;

const UNUSED = ["hidden_dropout_prob", "attention_probs_dropout_prob", "position_embedding_type", "classifier_dropout"];

/** A `qformer_config` -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export function qFormerConfig(raw: unknown, where = "config.json: qformer_config"): QFormerConfig {
  const config = readConfig(raw, DEFAULTS, where, UNUSED) as QFormerConfig;
  checkHeads(where, config);
  checkKnown(`${where}: hidden_act`, config.hidden_act, Object.keys(activations));
  return config;
}

/** Attention with the norm after its sum. states: width of what keys and values are made of. */
const attentionSpec = (name: string, D: number, states: number) => ({
  q: linearSpec(`${name}.attention.query`, D, D),
  k: linearSpec(`${name}.attention.key`, states, D),
  v: linearSpec(`${name}.attention.value`, states, D),
  out: linearSpec(`${name}.output.dense`, D, D),
  norm: normSpec(`${name}.output.LayerNorm`, D),
});

const feedForwardSpec = (name: string, kind: "" | "_query", { hidden_size: D, intermediate_size: F }: QFormerConfig) => ({
  fc1: linearSpec(`${name}.intermediate${kind}.dense`, D, F),
  fc2: linearSpec(`${name}.output${kind}.dense`, F, D),
  norm: normSpec(`${name}.output${kind}.LayerNorm`, D),
});

const layerSpec = (name: string, i: number, c: QFormerConfig) => ({
  self: attentionSpec(`${name}.attention`, c.hidden_size, c.hidden_size),
  ...(i % c.cross_attention_frequency === 0
    ? { cross: attentionSpec(`${name}.crossattention`, c.hidden_size, c.encoder_hidden_size) }
    : {}),
  query: feedForwardSpec(name, "_query", c),
  ...(c.use_qformer_text_input ? { text: feedForwardSpec(name, "", c) } : {}),
});

/** Every weight by its name in the file. prefix: "" or "qformer.". */
export const qFormerSpec = (c: QFormerConfig, prefix = "") => ({
  norm: normSpec(`${prefix}layernorm`, c.hidden_size),
  layers: repeat(c.num_hidden_layers, (i) => layerSpec(`${prefix}encoder.layer.${i}`, i, c)),
});
export type QFormer = Params<ReturnType<typeof qFormerSpec>>;
type Layer = QFormer["layers"][number];
type FeedForward = Layer["query"];

/** Post-norm attention: LayerNorm(x + attention(x)). x: [B, N, D] -> [B, N, D] */
function attend(p: Layer["self"], c: QFormerConfig, x: tf.Tensor3D, tap: Tap, mask?: Mask, states?: tf.Tensor3D): tf.Tensor3D {
  return layerNorm(p.norm, attention(p, x, { heads: c.num_attention_heads, tap, mask, states, onto: x }), c.layer_norm_eps, true);
}

/** Post-norm feed-forward part. x: [B, N, D] -> [B, N, D] */
const feedForward = (p: FeedForward, c: QFormerConfig, x: tf.Tensor3D): tf.Tensor3D =>
  layerNorm(
    p.norm,
    linear(p.fc2, linear(p.fc1, x, { activation: activationName(c.hidden_act) }), { onto: x }) as tf.Tensor3D,
    c.layer_norm_eps,
    true,
  );

export type QFormerInputs = {
  /** Queries: [B, Q, D]. */
  queries: tf.Tensor3D;
  /** What the picture's encoder gives: [B, N, encoder_hidden_size]. */
  states: tf.Tensor3D;
  /** int32 [B, N], 1 where a state counts. Default: all. */
  statesMask?: tf.Tensor2D;
};

/**
 * What the queries make of a picture: [B, Q, D].
 * Taps: `qformer.embed`, `qformer.layers.N.{self,cross}.{q,k,v,attn_scores,pattern,z}`, `qformer.layers.N.out`.
 */
export function queryPicture(p: QFormer, c: QFormerConfig, { queries, states, statesMask }: QFormerInputs, tap: Tap = noTap): tf.Tensor3D {
  const t = at(tap, "qformer");
  return tf.tidy(() => {
    const read = forBlocks(p.layers, states, tap);
    let x = t("embed", layerNorm(p.norm, queries, c.layer_norm_eps)); //                              [B, Q, D]
    p.layers.forEach((layer, i) => {
      const watch = at(t, `layers.${i}`);
      x = asBlock(
        layer,
        { x, states: read, statesMask },
        ({ x, states, statesMask }) => {
          x = attend(layer.self, c, x, at(watch, "self"));
          if (layer.cross) x = attend(layer.cross, c, x, at(watch, "cross"), { padding: statesMask }, states);
          return watch("out", feedForward(layer.query, c, x));
        },
        { tap: watch },
      );
    });
    return x;
  });
}

export const readPicture = (
  p: QFormer,
  c: QFormerConfig,
  { queries, states }: { queries: tf.Tensor3D; states: tf.Tensor3D; ids?: tf.Tensor2D; padding?: tf.Tensor2D },
  tap: Tap = noTap,
) => queryPicture(p, c, { queries, states }, tap);
