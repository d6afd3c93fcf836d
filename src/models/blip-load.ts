/** A BLIP checkpoint as a model: for retrieval and matching, for captions, for answers. */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import type { Picture } from "../image/picture";
import { type ImageProcessor, loadImageProcessor } from "../image/processor";
import type { ProcessorConfig } from "../image/processor-config";
import { asTileProcessor } from "../image/tiles";
import { embedding } from "../nn/layers";
import { makeCache } from "../nn/cache";
import { type Dtype, disposeParams, loadWeights, type Params } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { loadTokenizer } from "../text/tokenizer";
import { patchPlaces } from "./anyres-features";
import {
  answerSpec,
  type BlipConfig,
  type BlipDecoder,
  type BlipRetrievalParams,
  type BlipText,
  blipConfig,
  blipIgnored,
  captionSpec,
  decode,
  decoderLogits,
  encodeImage,
  encodeText,
  matchingLogits,
  readText,
  retrievalSpec,
  wordLoss,
} from "./blip";
import { contrastiveLoss, TEMPERATURE } from "./blip2";
import { unit } from "./clip";
import { evaVit } from "./eva-vit";
import type { DualEncoder, LanguageModel, Prompt, VisionLanguageModel } from "./loaded";

const sideOf = ({ vision_config: v }: BlipConfig): number => Math.floor(v.image_size / v.patch_size);

/** BlipForImageTextRetrieval. Its logits are cosines; its loss divides them by 0.07, with which the authors begin. */
export type BlipRetrieval = DualEncoder<BlipRetrievalParams> & {
  modelType: "blip";
  config: DualEncoder["config"] & BlipConfig;
  /** What the text's layers look at: [B, S, S, 3] -> [B, M, Dv] */
  see(pixels: tf.Tensor4D, tap?: Tap): tf.Tensor3D;
  /** Scores of "does not belong" and "belongs" of pairs: [B, M, Dv] -> [B, 2] */
  matchingLogits(states: tf.Tensor3D, text: BlipText, tap?: Tap): tf.Tensor2D;
  with(params: BlipRetrievalParams): BlipRetrieval;
};

/** @throws listing every misfit of config and weights */
export async function loadBlipRetrieval({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype): Promise<BlipRetrieval> {
  const config = blipConfig(raw);
  const [tokenizer, imageProcessor] = [await loadTokenizer(folder), loadImageProcessor(folder)];
  const spec = retrievalSpec(config);
  const params = loadWeights(spec, tensors, { dtype, ignore: blipIgnored, where: folder });
  const cosines = (images: tf.Tensor2D, texts: tf.Tensor2D) => tf.matMul(unit(images), unit(texts), false, true) as tf.Tensor2D;
  const around = (p: BlipRetrievalParams): BlipRetrieval => ({
    modelType: "blip",
    ...{ folder, dtype, config, spec, params: p, tokenizer, imageProcessor },
    grid: [sideOf(config), sideOf(config)],
    width: config.image_text_hidden_size,
    see: (pixels, tap = noTap) => evaVit(p.vision, config.vision_config, pixels, tap),
    encodeImage: (pixels, tap = noTap) => tf.tidy(() => encodeImage(p, config, pixels, tap)),
    encodeText: (ids, padding, tap = noTap) => tf.tidy(() => encodeText(p, config, { ids, padding }, tap)),
    matchingLogits: (states, text, tap = noTap) => tf.tidy(() => matchingLogits(p, config, states, text, tap)),
    logits: (images, texts) => tf.tidy(() => cosines(images, texts)),
    loss: (images, texts) => tf.tidy(() => contrastiveLoss(cosines(images, texts), TEMPERATURE)),
    with: around,
    dispose: () => disposeParams(spec, params),
  });
  return around(params);
}

/** The decoder as what `generate` drives. Its encoder's states are what `embedPrompt` gives. endTokens: [SEP] */
function decoderLanguage(p: BlipDecoder, config: BlipConfig): LanguageModel {
  const c = config.text_config;
  return {
    vocabSize: c.vocab_size,
    hiddenSize: c.hidden_size,
    contextLength: c.max_position_embeddings,
    layers: c.num_hidden_layers,
    endTokens: [config.end],
    embed: (ids) => embedding(p.bert.word, ids),
    forward({ embeddings, padding, encoded, cache, tap = noTap }) {
      if (!encoded) throw new RangeError("BLIP: its decoder says what it has read; give encoded: { states: encoder.encode(…) }");
      return tf.tidy(() => decode(p, c, { words: embeddings, padding, encoded, cache }, tap));
    },
    logits: (hidden) => decoderLogits(p, c, hidden),
    makeCache: (room) => makeCache(c.num_hidden_layers, room),
    encoder: { startToken: config.start, encode: ({ embeddings }) => embeddings.clone() },
  };
}

/** BLIP that says captions, or answers. */
export type BlipTalker<P = unknown> = VisionLanguageModel<P> & {
  config: BlipConfig;
  imageProcessor: ImageProcessor;
  /** A picture's states: [B, S, S, 3] -> [B, M, Dv] */
  see(pixels: tf.Tensor4D, tap?: Tap): tf.Tensor3D;
  /** What the decoder looks at for a question: [B, M, Dv] -> [B, N, D]. The captioner's is the picture itself. */
  ask(states: tf.Tensor3D, question: BlipText, tap?: Tap): tf.Tensor3D;
  /** Cross-entropy of each next word. logits: [B, N, V], labels: int32 [B, N] -> scalar */
  wordLoss(logits: tf.Tensor3D, labels: tf.Tensor2D): tf.Scalar;
  with(params: P): BlipTalker<P>;
};

const MARK = "<image>";

/** What the two talkers differ in. */
type Kind<P> = {
  decoder(params: P): BlipDecoder;
  vision(params: P): Parameters<typeof evaVit>[0];
  ask(params: P, states: tf.Tensor3D, question: BlipText, tap: Tap): tf.Tensor3D;
  /** Whether the decoder goes on from the text (captions); else it answers it. */
  goesOn: boolean;
};

/** BlipForConditionalGeneration: goes on from the beginning of a caption. @throws listing every misfit of config and weights */
export function loadBlipCaption(checkpoint: Checkpoint, dtype: Dtype): Promise<BlipTalker<Params<ReturnType<typeof captionSpec>>>> {
  const config = blipConfig(checkpoint.config);
  return talker(checkpoint, dtype, config, captionSpec(config), {
    decoder: (p) => p.decoder,
    vision: (p) => p.vision,
    ask: (_p, states) => states.clone(),
    goesOn: true,
  });
}

/** BlipForQuestionAnswering. @throws listing every misfit of config and weights */
export function loadBlipAnswer(checkpoint: Checkpoint, dtype: Dtype): Promise<BlipTalker<Params<ReturnType<typeof answerSpec>>>> {
  const config = blipConfig(checkpoint.config, true);
  return talker(checkpoint, dtype, config, answerSpec(config), {
    decoder: (p) => p.decoder,
    vision: (p) => p.vision,
    ask: (p, states, question, tap) => readText(p.encoder, config.text_config, question, states, at(tap, "encoder")),
    goesOn: false,
  });
}

async function talker<S extends object>(
  { folder, tensors }: Checkpoint,
  dtype: Dtype,
  config: BlipConfig,
  spec: S,
  kind: Kind<Params<S>>,
): Promise<BlipTalker<Params<S>>> {
  const [tokenizer, imageProcessor] = [await loadTokenizer(folder), loadImageProcessor(folder)];
  const tiles = asTileProcessor(imageProcessor as Parameters<typeof asTileProcessor>[0] & { config: ProcessorConfig });
  const params = loadWeights(spec, tensors, { dtype, ignore: blipIgnored, where: folder });
  const side = sideOf(config);
  const pad = tokenizer.special.pad ?? 0;

  function prompt(text: string, pictures: Picture[]): Prompt {
    const words = text.startsWith(MARK) ? text.slice(MARK.length) : text;
    if (words.includes(MARK) || pictures.length !== 1)
      throw new RangeError(
        `prompt: BLIP reads one picture, before the text: ${pictures.length} came, and the text is ${JSON.stringify(text)}; leave ${MARK} out or write it once, first`,
      );
    const [picture] = pictures;
    const tiled = tiles.tile(picture);
    if (!kind.goesOn) return { text, ids: tokenizer.encode(words), images: [{ picture, tiled, start: 0, end: 0, places: [] }] };
    const places = [undefined, ...patchPlaces(tiled.tiles[0], 0, side)]; // the class token shows nothing of its own
    const start = [config.start, ...tokenizer.encode(words, { addSpecialTokens: false })];
    return { text, ids: places.map(() => pad), images: [{ picture, tiled, start: 0, end: places.length, places }], start };
  }

  const around = (p: Params<S>): BlipTalker<Params<S>> => {
    const see = (pixels: tf.Tensor4D, tap: Tap = noTap) => evaVit(kind.vision(p), config.vision_config, pixels, tap);
    const ask = (states: tf.Tensor3D, question: BlipText, tap: Tap = noTap) => tf.tidy(() => kind.ask(p, states, question, tap));
    return {
      modelType: "blip",
      ...{ folder, dtype, config, spec, params: p, tokenizer, imageProcessor, see, ask, prompt },
      imageMark: MARK,
      language: decoderLanguage(kind.decoder(p), config),
      embedPrompt: ({ ids, images: [{ tiled }] }, { tap = noTap } = {}) =>
        tf.tidy(() => {
          const { height, width } = tiled.size;
          const states = see(tf.tensor4d(tiled.pixels, [1, height, width, 3]), tap);
          return ask(states, { ids: tf.tensor2d(ids, [1, ids.length], "int32") }, tap);
        }),
      wordLoss: (logits, labels) => wordLoss(config, logits, labels),
      with: around,
      dispose: () => disposeParams(spec, params),
    };
  };
  return around(params);
}
