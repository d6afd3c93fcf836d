/** Teaching a vision-language model answers: conversations with pictures as batches, and the loss of the answers' tokens. */
import { tf } from "../engine/tf";
import type { Picture } from "../image/picture";
import type { TileProcessor } from "../image/tiles";
import { embedPrompt, type InternVLConfig, type InternVLParams, projectImages } from "../models/internvl";
import type { LanguageModel, VisionLanguageModel } from "../models/loaded";
import { gatherRows } from "../nn/ops";
import { headCrossEntropy } from "../nn/cross-entropy";
import type { Tokenizer } from "../text/tokenizer";

/** One side asks, about a picture where it brings one, and the other answers. */
export type Exchange = { question: string; answer: string; picture?: Picture };
export type Conversation = Exchange[];

/** What stands around a question and an answer, special tokens included. */
export type Frame = { user: string; assistant: string; end: string };

/** What InternVL's prompts have besides: what stands around a picture's tokens, and for each of them. */
export type InternVLFrame = Frame & { image: { start: string; mark: string; end: string } };

/** How a picture gets into a batch. */
export type Eyes = {
  /** Rows and columns of a tile, and numbers of each place: [S, S, 3] for pixels. */
  shape: readonly [number, number, number];
  /** The values of a picture's tiles, one tile after the other, and the ids that stand for it in the prompt. */
  see(picture: Picture): { values: Float32Array; ids: readonly number[] };
};

export type ConversationBatch = {
  /** Tiles of all pictures, in the order of their tokens. [tiles, ...Eyes.shape] */
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

/** Makes batches of conversations in the words of a model's chat template. */
export function teacher(tokenizer: Tokenizer, eyes: Eyes, { user, assistant, end }: Frame): Teacher {
  const encode = remembered((text) => tokenizer.encode(text, { addSpecialTokens: false }));
  const tokensOf = (conversation: Conversation): Tokens => {
    const out: Tokens = { ids: [], answers: [], pixels: [] };
    const push = (ids: readonly number[], answer: boolean) => {
      for (const id of ids) {
        out.ids.push(id);
        out.answers.push(answer);
      }
    };
    for (const { question, answer, picture } of conversation) {
      push(encode(user), false);
      if (picture) {
        const { values, ids } = eyes.see(picture);
        out.pixels.push(values);
        push(ids, false);
      }
      push([...encode(question), ...encode(assistant)], false);
      push([...encode(answer), ...encode(end)], true);
    }
    return out;
  };
  return { tokensOf, batch: (conversations) => batchOf(conversations.map(tokensOf), eyes.shape) };
}

/** A function of texts that computes each of them once. */
function remembered<T>(compute: (text: string) => T): (text: string) => T {
  const known = new Map<string, T>();
  return (text) => {
    if (!known.has(text)) known.set(text, compute(text));
    return known.get(text)!;
  };
}

function batchOf(rows: Tokens[], shape: Eyes["shape"]): ConversationBatch {
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
    pixels: tf.tensor4d(pixels, [pixels.length / (shape[0] * shape[1] * shape[2]), ...shape]),
    ids: tf.tensor2d(ids, [B, N], "int32"),
    places: tf.tensor1d(places, "int32"),
    labels: tf.tensor1d(labels, "int32"),
  };
}

/** What learns to answer: how its prompts are made, and what they become. */
export type Pupil = {
  teacher: Teacher;
  language: Pick<LanguageModel, "forward" | "logits" | "headWeight" | "headBias">;
  /** What the language model reads: [B, N, D] */
  embed(batch: ConversationBatch): tf.Tensor3D;
};

/** An InternVL as a pupil. */
export function internVLPupil(
  model: VisionLanguageModel<InternVLParams>,
  config: InternVLConfig,
  processor: TileProcessor,
  { image, ...frame }: InternVLFrame,
): Pupil {
  const id = (token: string) => model.tokenizer.encode(token, { addSpecialTokens: false });
  const [start, [mark], end] = [id(image.start), id(image.mark), id(image.end)];
  const see = (picture: Picture) => {
    const { pixels, count } = processor.tile(picture);
    return { values: pixels, ids: [...start, ...Array<number>(count * config.image_seq_length).fill(mark), ...end] };
  };
  return {
    teacher: teacher(model.tokenizer, { shape: [processor.size.height, processor.size.width, 3], see }, frame),
    language: model.language,
    embed: ({ ids, pixels }) => tf.tidy(() => embedPrompt(model.params, config, ids, projectImages(model.params, config, pixels))),
  };
}

/** The state behind each token that an answer's token follows: [A, D] */
export function answerStates({ language, embed }: Pick<Pupil, "language" | "embed">, batch: ConversationBatch): tf.Tensor2D {
  return tf.tidy(() => {
    const hidden = language.forward({ embeddings: embed(batch) }); //                                 [B, N, D]
    const [B, N, D] = hidden.shape;
    return gatherRows(hidden.reshape([B * N, D]) as tf.Tensor2D, batch.places) as tf.Tensor2D;
  });
}

/** Mean cross-entropy of the answers' tokens. @throws TypeError for a head with a bias, whose logits would have to be made */
export function answerLoss(pupil: Pick<Pupil, "language" | "embed">): (batch: ConversationBatch) => tf.Scalar {
  const { headWeight, headBias } = pupil.language;
  if (headBias) throw new TypeError("answerLoss: this model's head adds a bias; BLIP has its own loss(…)");
  return (batch) => headCrossEntropy(answerStates(pupil, batch), headWeight, batch.labels);
}
