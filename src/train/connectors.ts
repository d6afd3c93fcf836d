/**
 * Ways to connect a picture tower with a language model, for comparing them: what stands between the tower's patches and the tokens that the language
 * model reads. linear as the first LLaVA (Liu et al. 2023), MLP as LLaVA-1.5, pixel shuffle and MLP as InternVL, learned queries as BLIP-2, a
 * softmax over visual words as Ovis.
 */
import { tf } from "../engine/tf";
import { layerNorm, linear, linearSpec, normSpec } from "../nn/layers";
import { type Params, w } from "../nn/spec";
import { qFormerConfig, qFormerSpec, readPicture } from "../models/qformer";
import { embedVisualTokens, groupPatches, visualTokens, visualTokenizerSpec } from "../models/visual-tokenizer";

/** A picture as the frozen tower gives it, and what the language model reads. */
export type ConnectorSizes = { side: number; width: number; hidden: number };

/** A connector with its weights: patches [B, side · side, width] -> tokens [B, n, hidden]. */
export type Connector<P = unknown> = {
  /** Tokens that a picture becomes. */
  tokens: number;
  spec: unknown;
  /** First values of weights that do not start as such weights do. */
  given?: { [name: string]: Float32Array };
  connect(params: P, patches: tf.Tensor3D): tf.Tensor3D;
};

/** Patches of 2 x 2 become one token. */
const STRIDE = 2;

function linearConnector({ side, width, hidden }: ConnectorSizes): Connector {
  const spec = linearSpec("linear", width, hidden);
  return { tokens: side ** 2, spec, connect: (p, x) => linear(p as Params<typeof spec>, x) as tf.Tensor3D };
}

const mlpSpec = (inner: number, hidden: number) => ({ fc1: linearSpec("fc1", inner, hidden), fc2: linearSpec("fc2", hidden, hidden) });
const mlp = (p: Params<ReturnType<typeof mlpSpec>>, x: tf.Tensor3D) =>
  tf.tidy(() => linear(p.fc2, linear(p.fc1, x, { activation: "gelu" })) as tf.Tensor3D);

function mlpConnector({ side, width, hidden }: ConnectorSizes): Connector {
  const spec = mlpSpec(width, hidden);
  return { tokens: side ** 2, spec, connect: (p, x) => mlp(p as Params<typeof spec>, x) };
}

function shuffleConnector({ side, width, hidden }: ConnectorSizes): Connector {
  const wide = width * STRIDE ** 2;
  const spec = { norm: normSpec("norm", wide), ...mlpSpec(wide, hidden) };
  return {
    tokens: (side / STRIDE) ** 2,
    spec,
    connect(params, x) {
      const p = params as Params<typeof spec>;
      return tf.tidy(() => mlp(p, layerNorm(p.norm, groupPatches(x, { rows: side, columns: side }, STRIDE))));
    },
  };
}

/** Of its two layers both look at the picture. */
function qFormerConnector({ side, width, hidden }: ConnectorSizes): Connector {
  const tokens = (side / STRIDE) ** 2;
  const config = qFormerConfig({
    hidden_size: hidden,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    intermediate_size: 4 * hidden,
    encoder_hidden_size: width,
    cross_attention_frequency: 1,
  });
  const spec = {
    queries: w("query_tokens", [1, tokens, hidden]),
    qformer: qFormerSpec(config, "qformer."),
    projection: linearSpec("projection", hidden, hidden),
  };
  return {
    tokens,
    spec,
    connect(params, x) {
      const p = params as Params<typeof spec>;
      return tf.tidy(() => {
        const queries = p.queries.tile([x.shape[0], 1, 1]) as tf.Tensor3D;
        return linear(p.projection, readPicture(p.qformer, config, { queries, states: x })) as tf.Tensor3D;
      });
    },
  };
}

/** Visual words, none of them an indicator. */
export const WORDS = 256;
/**
 * First weight of the norm before the softmax over visual words. At 1 every patch would be nearly the mean of all words, and hardly a gradient would pass.
 */
export const SHARPNESS = 3;

function wordsConnector({ side, width, hidden }: ConnectorSizes): Connector {
  const names = { linear: "head_linear", norm: "head_norm", table: "visual_embeddings_table" };
  const spec = visualTokenizerSpec({ width, stride: 1, words: WORDS, indicators: 0, hidden }, names);
  return {
    tokens: side ** 2,
    spec,
    given: { "head_norm.weight": new Float32Array(WORDS).fill(SHARPNESS) },
    connect(params, x) {
      const p = params as Params<typeof spec>;
      return tf.tidy(() => embedVisualTokens(p, visualTokens(p, x)));
    },
  };
}

/** Every connector by its name, simplest first. */
export const CONNECTORS = {
  linear: linearConnector,
  MLP: mlpConnector,
  "shuffle + MLP": shuffleConnector,
  "visual words": wordsConnector,
  "Q-Former": qFormerConnector,
} satisfies { [name: string]: (sizes: ConnectorSizes) => Connector };
export type ConnectorName = keyof typeof CONNECTORS;
export const CONNECTOR_NAMES = Object.keys(CONNECTORS) as ConnectorName[];
