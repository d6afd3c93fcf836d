/** Teaching a vision-language model answers: conversations with pictures as batches, and the loss of the answers' tokens. */
import { tf } from "../engine/tf";
import type { Picture } from "../image/picture";
import type { TileProcessor } from "../image/tiles";
import { embedPrompt, type InternVLConfig, type InternVLParams, projectImages } from "../models/internvl";
import type { VisionLanguageModel } from "../models/loaded";
import { gatherRows } from "../nn/ops";
import { headCrossEntropy } from "../nn/cross-entropy";

/** One side asks, about a picture where it brings one, and the other answers. */
export type Exchange = { question: string; answer: string; picture?: Picture };
export type Conversation = Exchange[];

/** What stands around a question and an answer, special tokens included; `image` around and for a picture's tokens. */
export type Frame = {
  user: string;
  assistant: string;
  end: string;
  image: { start: string; mark: string; end: string };
};

export type ConversationBatch = {
  /** Tiles of all pictures, in the order of their tokens. [tiles, S, S, 3] */
  pixels: tf.Tensor4D;
  /** Padded on the right. int32 [B, N] */
  ids: tf.Tensor2D;
  /** Places of B·N whose next token is an answer's. int32 [A] */
  places: tf.Tensor1D;
  /** Those next tokens. int32 [A] */
  labels: tf.Tensor1D;
};

/** A conversation as tokens, and which of them are the answer's. */
type Tokens = { ids: number[]; answers: boolean[]; pixels: Float32Array[] };

export type Teacher = { tokensOf(conversation: Conversation): Tokens; batch(conversations: Conversation[]): ConversationBatch };

/**
 * Makes batches of conversations in the words of a model's chat template.
 *
 * @param perTile image tokens of a tile
 */
export function teacher(
  model: Pick<VisionLanguageModel, "tokenizer">,
  processor: TileProcessor,
  { user, assistant, end, image }: Frame,
  perTile: number,
): Teacher {
  const known = new Map<string, number[]>();
  const encode = (text: string): number[] => {
    let ids = known.get(text);
    if (!ids) known.set(text, (ids = model.tokenizer.encode(text, { addSpecialTokens: false })));
    return ids;
  };
  const tokensOf = (conversation: Conversation): Tokens => {
    const out: Tokens = { ids: [], answers: [], pixels: [] };
    const push = (ids: number[], answer: boolean) => {
      for (const id of ids) {
        out.ids.push(id);
        out.answers.push(answer);
      }
    };
    for (const { question, answer, picture } of conversation) {
      push(encode(user), false);
      if (picture) {
        const { pixels, count } = processor.tile(picture);
        out.pixels.push(pixels);
        push([...encode(image.start), ...Array(count * perTile).fill(encode(image.mark)[0]), ...encode(image.end)], false);
      }
      push([...encode(question), ...encode(assistant)], false);
      push([...encode(answer), ...encode(end)], true);
    }
    return out;
  };
  return { tokensOf, batch: (conversations) => batchOf(conversations.map(tokensOf), processor.size) };
}

function batchOf(rows: Tokens[], { height, width }: { height: number; width: number }): ConversationBatch {
  const [B, N] = [rows.length, Math.max(...rows.map(({ ids }) => ids.length))];
  const ids = new Int32Array(B * N);
  const [places, labels]: number[][] = [[], []];
  for (const [b, row] of rows.entries())
    for (const [i, id] of row.ids.entries()) {
      ids[b * N + i] = id;
      if (!row.answers[i]) continue;
      places.push(b * N + i - 1);
      labels.push(id);
    }
  const parts = rows.flatMap((row) => row.pixels);
  const pixels = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let done = 0;
  for (const part of parts) {
    pixels.set(part, done);
    done += part.length;
  }
  return {
    pixels: tf.tensor4d(pixels, [pixels.length / (height * width * 3), height, width, 3]),
    ids: tf.tensor2d(ids, [B, N], "int32"),
    places: tf.tensor1d(places, "int32"),
    labels: tf.tensor1d(labels, "int32"),
  };
}

/** The state behind each token that an answer's token follows: [A, D] */
export function answerStates(model: VisionLanguageModel<InternVLParams>, config: InternVLConfig, batch: ConversationBatch): tf.Tensor2D {
  return tf.tidy(() => {
    const images = projectImages(model.params, config, batch.pixels);
    const embeddings = embedPrompt(model.params, config, batch.ids, images); //                       [B, N, D]
    const hidden = model.language.forward({ embeddings });
    const [B, N, D] = hidden.shape;
    return gatherRows(hidden.reshape([B * N, D]) as tf.Tensor2D, batch.places) as tf.Tensor2D;
  });
}

/** Mean cross-entropy of the answers' tokens. */
export const answerLoss =
  (model: VisionLanguageModel<InternVLParams>, config: InternVLConfig) =>
  (batch: ConversationBatch): tf.Scalar =>
    headCrossEntropy(answerStates(model, config, batch), model.language.headWeight, batch.labels);
