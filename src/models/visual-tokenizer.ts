/**
 * Ovis's visual tokenizer (Lu et al. 2024, "Ovis: Structural Embedding Alignment"): a patch becomes a share of every word of a visual vocabulary, and is
 * embedded as the mixture of those words' rows in a table, as a text token is embedded as its row. The last rows are indicators: where a picture begins,
 * ends, and how its tiles stand.
 */
import { toFloat32 } from "../engine/bfloat16";
import { tf } from "../engine/tf";
import { layerNorm, linear, normSpec, projectionSpec } from "../nn/layers";
import { matrix, type Params } from "../nn/spec";
import { noTap, type Tap } from "../nn/tap";

export type VisualVocabulary = {
  /** Width of a patch behind the tower. */
  width: number;
  /** Patches of stride x stride are read together. */
  stride: number;
  /** Words, indicators included. */
  words: number;
  indicators: number;
  /** Width of the language model. */
  hidden: number;
};

/** Weights by their names in the file. */
export const visualTokenizerSpec = (v: VisualVocabulary, names: { linear: string; norm: string; table: string }) => ({
  head: projectionSpec(names.linear, v.width * v.stride ** 2, v.words - v.indicators),
  norm: normSpec(names.norm, v.words - v.indicators),
  table: matrix(`${names.table}.weight`, [v.words, v.hidden]),
});
export type VisualTokenizer = Params<ReturnType<typeof visualTokenizerSpec>>;

/** Rows and columns of visual tokens that rows x columns patches give; an incomplete last group is filled with zeros. */
export const tokenGrid = ({ rows, columns }: { rows: number; columns: number }, stride: number) => ({
  rows: Math.ceil(rows / stride),
  columns: Math.ceil(columns / stride),
});

/** Neighbouring patches side by side. x: [B, rows·columns, D] -> [B, rows·columns / stride², stride²·D] */
export function groupPatches(x: tf.Tensor3D, { rows, columns }: { rows: number; columns: number }, stride: number): tf.Tensor3D {
  const [B, N, D] = x.shape;
  if (N !== rows * columns) throw new RangeError(`groupPatches: ${N} patches, expected ${rows} x ${columns}`);
  if (stride === 1) return x;
  const grid = tokenGrid({ rows, columns }, stride);
  const [down, right] = [grid.rows * stride - rows, grid.columns * stride - columns];
  const whole = x.reshape([B, rows, columns, D]);
  const padded =
    down || right
      ? whole.pad([
          [0, 0],
          [0, down],
          [0, right],
          [0, 0],
        ])
      : whole;
  return padded
    .reshape([B * grid.rows, stride, grid.columns, stride * D])
    .transpose([0, 2, 1, 3]) //                                                                      [B · rows, columns, stride, stride · D]
    .reshape([B, grid.rows * grid.columns, stride * stride * D]) as tf.Tensor3D;
}

/**
 * Grouped patches as shares of the visual words; each row sums to 1. x: [B, N, stride²·width] -> [B, N, words - indicators]
 * Taps: `visual_logits`, `visual_tokens`.
 */
export function visualTokens(p: VisualTokenizer, x: tf.Tensor3D, tap: Tap = noTap): tf.Tensor3D {
  const logits = tap("visual_logits", toFloat32(layerNorm(p.norm, linear(p.head, x) as tf.Tensor3D, 1e-5)));
  return tap("visual_tokens", tf.softmax(logits) as tf.Tensor3D);
}

/** The mixtures of the words' embeddings. tokens: [B, N, words - indicators] -> [B, N, hidden] */
export function embedVisualTokens(p: VisualTokenizer, tokens: tf.Tensor3D): tf.Tensor3D {
  const [B, N, V] = tokens.shape;
  const words = toFloat32(p.table).slice([0, 0], [V, p.table.shape[1]]) as tf.Tensor2D;
  return tf.matMul(tokens.reshape([B * N, V]) as tf.Tensor2D, words).reshape([B, N, p.table.shape[1]]);
}

/** The indicators' embeddings, the last rows of the table. [indicators, hidden] */
export function indicatorEmbeddings(p: VisualTokenizer, indicators: number): tf.Tensor2D {
  const [words, hidden] = p.table.shape;
  return toFloat32(p.table).slice([words - indicators, 0], [indicators, hidden]) as tf.Tensor2D;
}
