/** A Blip2ForImageTextRetrieval checkpoint as a model that takes pictures and texts. */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import { type ImageProcessor, loadImageProcessor } from "../image/processor";
import { type Dtype, disposeParams, loadWeights } from "../nn/spec";
import { noTap, type Tap } from "../nn/tap";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer";
import {
  type Blip2Config,
  type Blip2Params,
  type Blip2Text,
  blip2Config,
  blip2Spec,
  contrastiveLoss,
  encodePicture,
  encodeWords,
  matchingLogits,
  matchingLoss,
  similarities,
  type Watched,
  wordLogits,
  wordLoss,
} from "./blip2";
import { evaVit } from "./eva-vit";
import type { Loaded } from "./loaded";
import { qFormerIgnored } from "./qformer";

export type Blip2 = Loaded<Blip2Params> & {
  modelType: "blip-2";
  config: Blip2Config;
  tokenizer: Tokenizer;
  imageProcessor: ImageProcessor;
  /** Rows and columns of patches in a picture; its states have a class token before them. */
  grid: [number, number];
  /** Whether the checkpoint says words (its language head). */
  speaks: boolean;
  /** Texts as the model reads them. first: "[CLS]" for the contrastive and matching objectives, "[DEC]" for generation */
  read(texts: string[], first?: "[CLS]" | "[DEC]"): Required<Blip2Text>;
  /** What the Q-Former reads of pictures [B, S, S, 3], prepared by the image processor -> [B, N, Dv] */
  see(pixels: tf.Tensor4D, tap?: Tap): tf.Tensor3D;
  /** A unit vector for each query: [B, N, Dv] -> [B, Q, d] */
  encodePicture(states: tf.Tensor3D, tap?: Tap): tf.Tensor3D;
  /** A unit vector for each text: [B, d] */
  encodeWords(text: Blip2Text, tap?: Tap): tf.Tensor2D;
  /** Cosine of each text with the query nearest to it. [B, Q, d], [T, d] -> [B, T] */
  similarities(pictures: tf.Tensor3D, texts: tf.Tensor2D): tf.Tensor2D;
  /** [no, yes] of pairs: [B, 2] */
  matchingLogits(states: tf.Tensor3D, text: Blip2Text, options?: Watched): tf.Tensor2D;
  /** The next word at every place: [B, T, V] */
  wordLogits(states: tf.Tensor3D, text: Blip2Text, options?: Watched): tf.Tensor3D;
  /** The three losses, of matching rows of pictures and texts; `loss.matching` takes labels. */
  loss: {
    contrastive(states: tf.Tensor3D, text: Blip2Text): tf.Scalar;
    matching(states: tf.Tensor3D, text: Blip2Text, labels: tf.Tensor1D, options?: Watched): tf.Scalar;
    generation(states: tf.Tensor3D, text: Blip2Text, options?: Watched): tf.Scalar;
  };
  /** The same model around another parameter tree (with adapters attached or merged). Shares everything else. */
  with(params: Blip2Params): Blip2;
};

/** The model in an open checkpoint. @throws listing every misfit of config and weights */
export async function loadBlip2Retrieval(checkpoint: Checkpoint, dtype: Dtype): Promise<Blip2> {
  const { folder, config: raw, tensors } = checkpoint;
  const [tokenizer, imageProcessor] = [await loadTokenizer(folder), loadImageProcessor(folder)];
  const config = blip2Config(raw);
  const speaks = tensors.has("cls.predictions.bias");
  const spec = blip2Spec(config, speaks);
  const params = loadWeights(spec, tensors, { dtype, where: folder, ignore: qFormerIgnored });
  const side = Math.floor(config.vision_config.image_size / config.vision_config.patch_size);
  const fixed = {
    modelType: "blip-2" as const,
    folder,
    dtype,
    config,
    spec,
    tokenizer,
    imageProcessor,
    speaks,
    grid: [side, side] as [number, number],
  };
  const around = (p: Blip2Params): Blip2 => ({
    ...fixed,
    params: p,
    read: (texts, first = "[CLS]") => readTexts(tokenizer, config, texts, first),
    see: (pixels, tap = noTap) => evaVit(p.vision, config.vision_config, pixels, tap),
    encodePicture: (states, tap = noTap) => encodePicture(p, config, states, tap),
    encodeWords: (text, tap = noTap) => encodeWords(p, config, text, tap),
    similarities,
    matchingLogits: (states, text, options) => matchingLogits(p, config, states, text, options),
    wordLogits: (states, text, options) => wordLogits(p, config, states, text, options),
    loss: {
      contrastive: (states, text) =>
        tf.tidy(() => contrastiveLoss(similarities(encodePicture(p, config, states), encodeWords(p, config, text)))),
      matching: (states, text, labels, options) => tf.tidy(() => matchingLoss(matchingLogits(p, config, states, text, options), labels)),
      generation: (states, text, options) => tf.tidy(() => wordLoss(wordLogits(p, config, states, text, options), text)),
    },
    with: around,
    dispose: () => disposeParams(spec, params),
  });
  return around(params);
}

/** Padded to the longest, cut to the Q-Former's positions. Padded places hold the tokenizer's padding token. */
function readTexts(
  tokenizer: Tokenizer,
  { qformer_config: c }: Blip2Config,
  texts: string[],
  first: "[CLS]" | "[DEC]",
): Required<Blip2Text> {
  const { ids, mask } = tokenizer.batch(texts, { maxLength: c.max_position_embeddings, padding: "longest", truncation: true });
  const start = tokenizer.idOf(first);
  if (start === undefined) throw new Error(`${first} is not in this checkpoint's vocabulary`);
  const flat = ids.map((row) => [start, ...row.slice(1)]);
  const shape: [number, number] = [ids.length, ids[0]?.length ?? 0];
  const ints = (rows: number[][]) => tf.tensor2d(rows.flat(), shape, "int32");
  return { ids: ints(flat), padding: ints(mask) };
}
