/** BLIP's captioning and question-answering checkpoints as models to ask. */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import type { Picture } from "../image/picture";
import { loadImageProcessor } from "../image/processor";
import type { ProcessorConfig } from "../image/processor-config";
import { asTileProcessor } from "../image/tiles";
import { type Dtype, disposeParams, loadWeights, type Params } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { loadTokenizer } from "../text/tokenizer";
import { patchPlaces } from "./anyres-features";
import { type BlipConfig, blipConfig, blipIgnored, gridOf, headIsItsOwn, readTexts, textSpec, writerSpec } from "./blip";
import { blipLanguage, type Encoded, nextWordLogits, nextWordLoss } from "./blip-language";
import { evaVit, evaVitSpec } from "./eva-vit";
import type { LanguageModel, Prompt, VisionLanguageModel } from "./loaded";
import { readWords, type Sight, type Words } from "./matcher";

const DECODER = "text_decoder.";

/** What `generate` takes of a question about a picture. Its tensors belong to the caller: `tf.dispose(asked)`. */
export type Asked = { embeddings: tf.Tensor3D; start: number[]; encoded: Encoded };

/** For a pipeline, and for `generate` with what `ask` gives. What `embedPrompt` gives is what the decoder looks at. */
type Writing<P> = VisionLanguageModel<P> & Sight & { config: BlipConfig };

/** A BlipForConditionalGeneration: captions. */
export type BlipCaptioner = Writing<CaptionParams> & {
  /**
   * What `generate` needs for a caption of one picture, prepared: [1, S, S, 3].
   *
   * @param text how the caption begins; default: nothing
   */
  ask(pixels: tf.Tensor4D, text?: string, tap?: Tap): Asked;
  /** The next word at every place of captions of pictures. states: [B, N, Dv] -> [B, T, V]. Taps: `language.…`. */
  wordLogits(states: tf.Tensor3D, words: Words, options?: { tap?: Tap }): tf.Tensor3D;
  /** Cross-entropy of each next word, with the config's label smoothing. */
  loss(states: tf.Tensor3D, words: Words): tf.Scalar;
  with(params: CaptionParams): BlipCaptioner;
};

/** A BlipForQuestionAnswering. */
export type BlipAnswerer = Writing<AnswerParams> & {
  /** What `generate` needs for an answer about one picture, prepared: [1, S, S, 3]. */
  ask(pixels: tf.Tensor4D, question: string, tap?: Tap): Asked;
  /**
   * What the encoder makes of questions and pictures, and which of it is real. states: [B, N, Dv] -> { states: [B, T, D], padding }. Taps: `question.…`.
   * The decoder of transformers 5 looks at padding too: leave `padding` out for its numbers.
   */
  readQuestion(states: tf.Tensor3D, question: Words, tap?: Tap): Encoded;
  /** The next word at every place of answers to what `readQuestion` gives. -> [B, T, V]. Taps: `language.…`. */
  wordLogits(read: Encoded, answer: Words, options?: { tap?: Tap }): tf.Tensor3D;
  /** Cross-entropy of each next word of the answers. transformers counts padding too: leave `answer.padding` out for its number. */
  loss(read: Encoded, answer: Words): tf.Scalar;
  with(params: AnswerParams): BlipAnswerer;
};

/** Every weight of a captioner by its name in the file. ownHead: of `headIsItsOwn` */
export const captionSpec = ({ vision_config: v, text_config: t }: BlipConfig, ownHead = false) => ({
  vision: evaVitSpec(v),
  decoder: writerSpec(t, DECODER, v.hidden_size, ownHead),
});
export type CaptionParams = Params<ReturnType<typeof captionSpec>>;

/** Every weight of a model that answers. The decoder reads the encoder's states, at the width of the picture's (transformers makes no other). */
export const answerSpec = ({ vision_config: v, text_config: t }: BlipConfig, ownHead = false) => ({
  vision: evaVitSpec(v),
  encoder: textSpec(t, "text_encoder.", v.hidden_size),
  decoder: writerSpec(t, DECODER, v.hidden_size, ownHead),
});
export type AnswerParams = Params<ReturnType<typeof answerSpec>>;

const MARK = "<image>";

/** What both have besides their weights. */
async function open({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype) {
  const config = blipConfig(raw);
  const [tokenizer, imageProcessor] = [await loadTokenizer(folder), loadImageProcessor(folder)];
  const tiles = asTileProcessor(imageProcessor as Parameters<typeof asTileProcessor>[0] & { config: ProcessorConfig });
  const read = (texts: string[]) => readWords(tokenizer, texts, config.text_config.max_position_embeddings);
  const parts = {
    modelType: "blip",
    imageMark: MARK,
    folder,
    dtype,
    config,
    tokenizer,
    imageProcessor,
    grid: gridOf(config.vision_config),
    read,
  };
  const weights = <S>(spec: S): Params<S> => loadWeights(spec, tensors, { dtype, where: folder, ignore: blipIgnored });
  /** The words of a prompt, and its one picture. */
  const onePrompt = (text: string, pictures: Picture[]) => {
    const words = text.startsWith(MARK) ? text.slice(MARK.length) : text;
    if (words.includes(MARK) || pictures.length !== 1)
      throw new RangeError(
        `prompt: BLIP reads one picture, before the text: ${pictures.length} came, and the text is ${JSON.stringify(text)}; leave ${MARK} out or write it once, first`,
      );
    return { words, picture: pictures[0], tiled: tiles.tile(pictures[0]) };
  };
  return { parts, config, weights, onePrompt, ownHead: headIsItsOwn(tensors, DECODER) };
}

/** A prompt's picture as the tower takes it: [1, S, S, 3] */
const pixelsOf = ({ images: [{ tiled }] }: Prompt): tf.Tensor4D => tf.tensor4d(tiled.pixels, [1, tiled.size.height, tiled.size.width, 3]);

/** The model in an open checkpoint. @throws listing every misfit of config and weights */
export async function loadBlipCaptioner(checkpoint: Checkpoint, dtype: Dtype): Promise<BlipCaptioner> {
  const { parts, config, weights, onePrompt, ownHead } = await open(checkpoint, dtype);
  const { vision_config: vision, text_config: text } = config;
  const begin = (words: string) => [text.bos_token_id, ...parts.tokenizer.encode(words, { addSpecialTokens: false })];
  const spec = captionSpec(config, ownHead);
  const params = weights(spec);
  const around = (p: CaptionParams): BlipCaptioner => {
    const language = blipLanguage(p.decoder, text);
    const see = (pixels: tf.Tensor4D, tap: Tap = noTap) => evaVit(p.vision, vision, pixels, tap);
    const wordLogits = (states: tf.Tensor3D, words: Words, { tap = noTap }: { tap?: Tap } = {}) =>
      nextWordLogits(language, words, { states }, at(tap, "language"));
    return {
      ...parts,
      spec,
      params: p,
      language,
      see,
      ask: (pixels, words = "", tap) => asked(language, begin(words), see(onePicture(pixels), tap)),
      prompt(given, pictures) {
        const { words, picture, tiled } = onePrompt(given, pictures);
        const places = [undefined, ...patchPlaces(tiled.tiles[0], 0, parts.grid[0])]; // the class token shows nothing of its own
        const ids = places.map(() => parts.tokenizer.special.pad ?? 0);
        return { text: given, ids, images: [{ picture, tiled, start: 0, end: places.length, places }], start: begin(words) };
      },
      embedPrompt: (prompt, { tap } = {}) => tf.tidy(() => see(pixelsOf(prompt), tap)),
      wordLogits,
      loss: (states, words) => tf.tidy(() => nextWordLoss(wordLogits(states, words), words, text)),
      with: around,
      dispose: () => disposeParams(spec, params),
    };
  };
  return around(params);
}

/** The model in an open checkpoint. @throws listing every misfit of config and weights */
export async function loadBlipAnswerer(checkpoint: Checkpoint, dtype: Dtype): Promise<BlipAnswerer> {
  const { parts, config, weights, onePrompt, ownHead } = await open(checkpoint, dtype);
  const { vision_config: vision, text_config: text } = config;
  if (text.hidden_size !== vision.hidden_size)
    throw new Error(
      `config.json: text_config: hidden_size is ${text.hidden_size}, vision_config: hidden_size ${vision.hidden_size}; where BLIP answers questions they are ` +
        "equal, since one kind of layer looks at pictures in the encoder and at questions in the decoder",
    );
  const spec = answerSpec(config, ownHead);
  const params = weights(spec);
  const around = (p: AnswerParams): BlipAnswerer => {
    const language = blipLanguage(p.decoder, text);
    const see = (pixels: tf.Tensor4D, tap: Tap = noTap) => evaVit(p.vision, vision, pixels, tap);
    const readQuestion = (states: tf.Tensor3D, question: Words, tap: Tap = noTap): Encoded => ({
      states: readTexts(p.encoder, text, question, states, at(tap, "question")),
      padding: question.padding,
    });
    const wordLogits = (read: Encoded, answer: Words, { tap = noTap }: { tap?: Tap } = {}) =>
      nextWordLogits(language, answer, read, at(tap, "language"));
    return {
      ...parts,
      spec,
      params: p,
      language,
      see,
      readQuestion,
      ask(pixels, question, tap) {
        const one = onePicture(pixels);
        const read = tf.tidy(() => readQuestion(see(one, tap), { ids: parts.read([question]).ids }, tap).states);
        return asked(language, [text.bos_token_id], read);
      },
      prompt(given, pictures) {
        const { words, picture, tiled } = onePrompt(given, pictures);
        return { text: given, ids: parts.tokenizer.encode(words), images: [{ picture, tiled, start: 0, end: 0, places: [] }] };
      },
      embedPrompt: (prompt, { tap } = {}) =>
        tf.tidy(() => readQuestion(see(pixelsOf(prompt), tap), { ids: tf.tensor2d([prompt.ids], undefined, "int32") }, tap).states),
      wordLogits,
      loss: (read, answer) => tf.tidy(() => nextWordLoss(wordLogits(read, answer), answer, text)),
      with: around,
      dispose: () => disposeParams(spec, params),
    };
  };
  return around(params);
}

function onePicture(pixels: tf.Tensor4D): tf.Tensor4D {
  if (pixels.shape[0] !== 1)
    throw new RangeError(`ask: pixels are [${pixels.shape}], ${pixels.shape[0]} pictures; expected one, [1, S, S, 3]`);
  return pixels;
}

const asked = (language: LanguageModel, start: number[], states: tf.Tensor3D): Asked => ({
  start,
  embeddings: tf.tidy(() => language.embed(tf.tensor2d([start], undefined, "int32"))),
  encoded: { states },
});
