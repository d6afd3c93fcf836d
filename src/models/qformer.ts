/**
 * The Q-Former: learned queries that read a picture (Li et al. 2023, "BLIP-2", section 3.1). A BERT whose queries and text share the self-attention, whose
 * queries alone look at the picture, every `cross_attention_frequency`-th layer, and where each kind has a feed-forward part of its own.
 * Numbers as transformers/models/blip_2/modeling_blip_2.py (Blip2QFormerModel); names of weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { asBlock, forBlocks } from "../nn/block";
import { activationName, activations, attention, embedding, layerNorm, linear, linearSpec, type Mask, normSpec } from "../nn/layers";
import { linearProduct } from "../nn/ops";
import { matrix, type Params, repeat, w } from "../nn/spec";
import { at, noTap, type Tap, watched } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";
import { attentionPlaces, checkPlaces, type Objective, type Places, placesBias } from "./qformer-masks";

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
  query: {
    ...(i % c.cross_attention_frequency === 0
      ? { cross: attentionSpec(`${name}.crossattention`, c.hidden_size, c.encoder_hidden_size) }
      : {}),
    ...feedForwardSpec(name, "_query", c),
  },
  ...(c.use_qformer_text_input ? { text: feedForwardSpec(name, "", c) } : {}),
});

/** Where a checkpoint keeps the embeddings of text and the norm of what goes into the first layer. */
export type QFormerLayout = { words: string; norm: string };

/**
 * Every weight by its name in the file. prefix: "" or "qformer.".
 *
 * @param layout default: as InstructBLIP with text, inside the Q-Former's embeddings; as BLIP-2 without
 */
export const qFormerSpec = (
  c: QFormerConfig,
  prefix = "",
  layout: QFormerLayout = {
    words: `${prefix}embeddings.`,
    norm: c.use_qformer_text_input ? `${prefix}embeddings.layernorm` : `${prefix}layernorm`,
  },
) => ({
  ...(c.use_qformer_text_input
    ? {
        words: matrix(`${layout.words}word_embeddings.weight`, [c.vocab_size, c.hidden_size]),
        positions: w(`${layout.words}position_embeddings.weight`, [c.max_position_embeddings, c.hidden_size]),
      }
    : {}),
  norm: normSpec(layout.norm, c.hidden_size),
  layers: repeat(c.num_hidden_layers, (i) => layerSpec(`${prefix}encoder.layer.${i}`, i, c)),
});
export type QFormer = Params<ReturnType<typeof qFormerSpec>>;
type Layer = QFormer["layers"][number];
type FeedForward = NonNullable<Layer["text"]>;

/** Buffers that older files carry and the model computes itself. */
export const qFormerIgnored = /embeddings\.position_ids$/;

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
  queries?: tf.Tensor3D;
  /** Text behind the queries: int32 [B, T]. */
  ids?: tf.Tensor2D;
  /** int32 [B, T], 1 where a text token is real. Default: all. */
  padding?: tf.Tensor2D;
  /** What the picture's encoder gives, for the queries: [B, N, encoder_hidden_size]. */
  states?: tf.Tensor3D;
  /** int32 [B, N], 1 where a state counts. Default: all. */
  statesMask?: tf.Tensor2D;
  /** Who looks at whom: an objective's mask, or one of one's own, of Q + T rows. Default: "matching", where everybody sees everybody. */
  mask?: Objective | Places;
};

/**
 * Queries and text, either or both: [B, Q + T, D], queries first.
 * Taps: `qformer.embed`, `qformer.mask` ([1, 1, Q + T, Q + T], 1 where the row's token sees the column's, padding apart),
 * `qformer.layers.N.{self,cross}.{q,k,v,attn_scores,pattern,z}`, `qformer.layers.N.out`.
 *
 * @throws RangeError when something is missing or does not fit
 */
export function qFormer(p: QFormer, c: QFormerConfig, inputs: QFormerInputs, tap: Tap = noTap): tf.Tensor3D {
  checkInputs(p, c, inputs);
  const { queries, ids, states, statesMask } = inputs;
  const t = at(tap, "qformer");
  return tf.tidy(() => {
    const Q = queries?.shape[1] ?? 0;
    const [padding, bias] = masksOf(inputs, t);
    const read = states && forBlocks(p.layers, states, tap);
    const rows = [...(queries ? [queries] : []), ...(ids ? [embedText(p, ids)] : [])];
    let x = t("embed", layerNorm(p.norm, joinRows(rows), c.layer_norm_eps)); //                       [B, Q + T, D]
    p.layers.forEach((layer, i) => {
      const watch = at(t, `layers.${i}`);
      const seen = asBlock(
        layer.self,
        { x, padding, bias },
        ({ x, padding, bias }) => attend(layer.self, c, x, at(watch, "self"), { padding, bias }),
        { tap: watch },
      );
      const [q, text] = Q === 0 ? [undefined, seen] : ids ? splitRows(seen, Q) : [seen, undefined];
      const parts: tf.Tensor3D[] = [];
      if (q)
        parts.push(
          asBlock(
            layer.query,
            { x: q, states: read, statesMask },
            ({ x, states, statesMask }) => {
              const { cross } = layer.query;
              if (cross) x = attend(cross, c, x, at(watch, "cross"), { padding: statesMask }, states);
              return feedForward(layer.query, c, x);
            },
            { tap: watch },
          ),
        );
      if (text) parts.push(asBlock(layer.text!, { x: text }, ({ x }) => feedForward(layer.text!, c, x), { tap: watch }));
      x = watch("out", joinRows(parts));
    });
    return x;
  });
}

/** Words and their places, before the norm. ids: int32 [B, T] -> [B, T, D] */
const embedText = (p: QFormer, ids: tf.Tensor2D): tf.Tensor3D =>
  embedding(p.words!, ids).add(p.positions!.slice([0, 0], [ids.shape[1], p.positions!.shape[1]])) as tf.Tensor3D;

/** Padding of queries and text, int32 [B, Q + T], and what else is hidden, [1, 1, Q + T, Q + T]; undefined where nothing is. */
function masksOf({ queries, ids, padding, mask = "matching" }: QFormerInputs, t: Tap): [tf.Tensor2D | undefined, tf.Tensor4D | undefined] {
  const [Q, T] = [queries?.shape[1] ?? 0, ids?.shape[1] ?? 0];
  const real = padding && Q ? (tf.concat([tf.ones([padding.shape[0], Q], "int32"), padding], 1) as tf.Tensor2D) : padding;
  const places = typeof mask === "string" ? attentionPlaces(mask, Q, T) : mask;
  const all = places.every((row) => row.every((cell) => cell === 1));
  if (all && !watched(t)) return [real, undefined];
  const given = tf.tensor(places.flat(), [1, 1, Q + T, Q + T]) as tf.Tensor4D;
  const used = t("mask", given);
  return [real, all && used === given ? undefined : placesBias(used)];
}

const joinRows = (parts: tf.Tensor3D[]): tf.Tensor3D => (parts.length === 1 ? parts[0] : tf.concat(parts, 1));

const splitRows = (x: tf.Tensor3D, first: number): tf.Tensor3D[] => tf.split(x, [first, x.shape[1] - first], 1) as tf.Tensor3D[];

function checkInputs(p: QFormer, c: QFormerConfig, { queries, ids, padding, states, mask }: QFormerInputs): void {
  const misfits: string[] = [];
  const [B, Q, T] = [queries?.shape[0] ?? ids?.shape[0], queries?.shape[1] ?? 0, ids?.shape[1] ?? 0];
  if (Q + T === 0) misfits.push("neither queries nor text came");
  if (queries && !states) misfits.push("queries came without the states of a picture, which they read");
  if (ids && !p.words) misfits.push("text came, but this checkpoint's Q-Former reads none (use_qformer_text_input false)");
  if (T > c.max_position_embeddings) misfits.push(`${T} text tokens, but its positions reach ${c.max_position_embeddings}`);
  if (ids && ids.shape[0] !== B) misfits.push(`${B} rows of queries, ${ids.shape[0]} of text`);
  if (padding && String(padding.shape) !== String([B, T])) misfits.push(`padding is [${padding.shape}], expected [${B}, ${T}]`);
  if (states && (states.shape[0] !== B || states.shape[2] !== c.encoder_hidden_size))
    misfits.push(`states are [${states.shape}], expected [${B}, N, ${c.encoder_hidden_size}]`);
  if (misfits.length) throw new RangeError(`Q-Former: ${misfits.join("; ")}`);
  if (mask && typeof mask !== "string") checkPlaces(mask, Q + T);
}

/**
 * What the queries make of a picture, and of an instruction where a checkpoint's Q-Former reads one: [B, Q, D]. Taps as `qFormer`'s.
 */
export function readPicture(p: QFormer, c: QFormerConfig, inputs: QFormerInputs & { queries: tf.Tensor3D }, tap: Tap = noTap): tf.Tensor3D {
  return tf.tidy(() => queryRows(qFormer(p, c, inputs, tap), inputs.queries.shape[1]));
}

/** The queries' rows. x: [B, Q + T, D] -> [B, Q, D] */
export const queryRows = (x: tf.Tensor3D, queries: number): tf.Tensor3D =>
  x.shape[1] === queries ? x : x.slice([0, 0, 0], [-1, queries, -1]);

/** The head that says the next word (BERT's), its matrix that of the word embeddings. prefix: "cls.predictions.". */
export const languageHeadSpec = (c: Pick<QFormerConfig, "hidden_size" | "vocab_size">, prefix = "cls.predictions.") => ({
  dense: linearSpec(`${prefix}transform.dense`, c.hidden_size, c.hidden_size),
  norm: normSpec(`${prefix}transform.LayerNorm`, c.hidden_size),
  bias: w(`${prefix}bias`, [c.vocab_size]),
});
export type LanguageHead = Params<ReturnType<typeof languageHeadSpec>>;

/** Scores of every token. words: [V, D], x: [B, T, D] -> [B, T, V] */
export const languageLogits = (
  p: LanguageHead,
  words: tf.Tensor2D,
  c: Pick<QFormerConfig, "hidden_act" | "layer_norm_eps">,
  x: tf.Tensor3D,
): tf.Tensor3D =>
  tf.tidy(() => {
    const hidden = layerNorm(p.norm, linear(p.dense, x, { activation: activationName(c.hidden_act) }) as tf.Tensor3D, c.layer_norm_eps);
    return linearProduct(hidden, words, p.bias) as tf.Tensor3D;
  });
