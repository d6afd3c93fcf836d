/**
 * BLIP's checkpoints that write: captions, whose decoder looks at the picture, and answers, whose decoder looks at what an encoder has made of the question
 * and the picture. `generate(model.language, { ...model.ask(pixels, text), tokenizer: model.tokenizer })` drives both.
 */
import { tf } from "../engine/tf";
import { crossEntropy, IGNORED } from "../nn/cross-entropy";
import { makeCache } from "../nn/cache";
import { embedding } from "../nn/layers";
import { linearProduct } from "../nn/ops";
import { noTap, type Tap } from "../nn/tap";
import { bert, placeWords } from "./bert";
import type { BlipTextConfig, Writer } from "./blip";
import type { DecoderInputs, LanguageModel } from "./loaded";
import type { Words } from "./matcher";
import { languageState } from "./qformer";

/**
 * What the head's matrix multiplies. embeddings: rows of the word table [B, N, D] -> [B, N, D]
 * Taps: `embed`, `blocks.N.…` as BERT's, with `cross_attn.…`, `final`.
 *
 * @throws RangeError without `encoded`, and when a token's place is beyond `max_position_embeddings`
 */
export function blipDecode(p: Writer, c: BlipTextConfig, inputs: DecoderInputs): tf.Tensor3D {
  const { embeddings, positions, padding, cache, encoded, tap = noTap, checkpointing } = inputs;
  if (!encoded) throw new RangeError("BLIP: its decoder looks at a picture, or at a question about one; give encoded: { states }");
  const { states, padding: statesPadding } = encoded;
  return tf.tidy(() => {
    const x = placeWords(p.bert, c, embeddings, { first: cache?.length, positions }, tap);
    const y = bert(p.bert, c, { x, mask: { causal: true, padding }, states, statesPadding, cache, checkpointing }, tap);
    return tap("final", languageState(p.head, c, y));
  });
}

/** The decoder as what `generate` drives: what it looks at stands for an encoder's work. */
export function blipLanguage(p: Writer, c: BlipTextConfig): LanguageModel {
  const headWeight = p.words ?? p.bert.word;
  return {
    vocabSize: c.vocab_size,
    hiddenSize: c.hidden_size,
    contextLength: c.max_position_embeddings,
    layers: c.num_hidden_layers,
    endTokens: [c.sep_token_id],
    embed: (ids) => embedding(p.bert.word, ids),
    forward: (inputs) => blipDecode(p, c, inputs),
    logits: (hidden) => linearProduct(hidden, headWeight, p.head.bias) as tf.Tensor3D,
    headWeight,
    headBias: p.head.bias,
    makeCache: (room) => makeCache(c.num_hidden_layers, room),
    // The states that the decoder looks at are made before: of the picture, or of the question.
    encoder: { startToken: c.bos_token_id, encode: ({ embeddings }) => embeddings.clone() },
  };
}

/** The next word at every place of a text. -> [B, T, V] */
export const nextWordLogits = (language: LanguageModel, { ids, padding }: Words, encoded: Encoded, tap: Tap = noTap): tf.Tensor3D =>
  tf.tidy(() => language.logits(language.forward({ embeddings: language.embed(ids), padding, encoded, tap })));

export type Encoded = NonNullable<DecoderInputs["encoded"]>;

/** Cross-entropy of each next token, over real ones, with the config's label smoothing. logits: [B, T, V] -> scalar */
export const nextWordLoss = (logits: tf.Tensor3D, { ids, padding }: Words, { label_smoothing: smoothing }: BlipTextConfig): tf.Scalar =>
  tf.tidy(() => {
    const [B, T, V] = logits.shape;
    const rest = (x: tf.Tensor2D) => x.slice([0, 1], [B, T - 1]);
    const labels = padding ? tf.where(rest(padding).equal(1), rest(ids), tf.fill([B, T - 1], IGNORED, "int32")) : rest(ids);
    return crossEntropy(logits.slice([0, 0, 0], [B, T - 1, V]), labels, { smoothing });
  });
