/** The contracts between a model family and the rest: what every model has, and what those that talk have. */
import type { tf } from "../engine/tf";
import type { Tiled, TileOverrides } from "../image/tiles";
import type { Picture } from "../image/picture";
import type { ImageProcessor } from "../image/processor";
import type { Cache } from "../nn/cache";
import type { Dtype } from "../nn/spec";
import type { Tap } from "../nn/tap";
import type { Tokenizer } from "../text/tokenizer";

/** What every loaded model has, whatever its family. */
export type Loaded<P> = {
  /** `model_type` of config.json. */
  modelType: string;
  /** Where its files are. */
  folder: string;
  dtype: Dtype;
  /** The tree of weight names that `params` follows. */
  spec: unknown;
  params: P;
  /** What a module of the weight file is called in transformers, and so in PEFT's adapters, where that differs from the file. */
  moduleName?(name: string): string;
  /** Frees the weights. The model must not be used afterwards. */
  dispose(): void;
};

/** Two towers that put pictures and texts into one space, whatever the family: CLIP, SigLIP, VisionTextDualEncoder, FLAVA. */
export type DualEncoder<P = unknown> = Loaded<P> & {
  config: { text_config: { max_position_embeddings: number } };
  tokenizer: Tokenizer;
  imageProcessor: ImageProcessor;
  /** Rows and columns of patches in a picture of the checkpoint's own size. */
  grid: [number, number];
  /** d, the numbers of an embedding. */
  width: number;
  /** Texts are padded to what the model reads, and the padding is read too (SigLIP). */
  readsPadding?: boolean;
  /** Pictures [B, H, W, 3], normalised as the checkpoint's image processor does -> [B, d], not normalised. */
  encodeImage(pixels: tf.Tensor4D, tap?: Tap): tf.Tensor2D;
  /** Token ids int32 [B, N] and mask int32 [B, N] -> [B, d], not normalised. */
  encodeText(ids: tf.Tensor2D, mask?: tf.Tensor2D, tap?: Tap): tf.Tensor2D;
  /** Scores of every picture with every text. [B, d], [T, d] -> [B, T] */
  logits(images: tf.Tensor2D, texts: tf.Tensor2D): tf.Tensor2D;
  /** The family's loss of matching rows. [B, d], [B, d] -> scalar */
  loss(images: tf.Tensor2D, texts: tf.Tensor2D): tf.Scalar;
  /** The same model around another parameter tree (with adapters attached or merged). Shares everything else. */
  with(params: P): DualEncoder<P>;
};

export type DecoderInputs = {
  /** What stands at each position: token embeddings, or a picture's features. [B, N, D] */
  embeddings: tf.Tensor3D;
  /** int32 [B or 1, N]; default: from the cache's length on. */
  positions?: tf.Tensor2D;
  /** int32 [B, all tokens, those of the cache included], 1 where a token is real. */
  padding?: tf.Tensor2D;
  /** Grows by N. Not with gradients. */
  cache?: Cache;
  /** What the encoder made of the prompt, where there is an encoder: [B, M, D], and its mask int32 [B, M]. */
  encoded?: { states: tf.Tensor3D; padding?: tf.Tensor2D };
  tap?: Tap;
  /** Blocks are computed again in the backward pass instead of kept. */
  checkpointing?: boolean;
};

/** A language model as `generate` drives it: one that goes on from a prompt, or writes what an encoder has read. */
export type LanguageModel = {
  vocabSize: number;
  hiddenSize: number;
  /** Tokens that positions reach, prompt and answer together; Infinity where positions have no end. */
  contextLength: number;
  /** Blocks of the decoder. */
  layers: number;
  /** Ids that end an answer, as the checkpoint's generation_config.json or config.json says. */
  endTokens: number[];
  /** Rows of the embedding table, ids int32 [B, N] -> [B, N, D] */
  embed(ids: tf.Tensor2D): tf.Tensor3D;
  /** The state that the head reads: [B, N, D] */
  forward(inputs: DecoderInputs): tf.Tensor3D;
  /** Scores of every token of the vocabulary: [B, N, D] -> [B, N, V] */
  logits(hidden: tf.Tensor3D): tf.Tensor3D;
  /** The head's matrix, for a loss without logits: [V, D]. Undefined where the head has a bias besides (BLIP). */
  headWeight?: tf.Tensor2D;
  /** Room for so many tokens. */
  makeCache(room: number): Cache;
  /** Encoder-decoder models: what the encoder makes of a prompt's embeddings, and the id that a decoder begins with. */
  encoder?: { startToken: number; encode(inputs: { embeddings: tf.Tensor3D; padding?: tf.Tensor2D; tap?: Tap }): tf.Tensor3D };
};

/** What of a picture an image token stands for; undefined for tokens that show nothing (newlines, indicators). In the original picture's pixels. */
export type TokenPlace = { left: number; top: number; width: number; height: number; tile: number } | undefined;

/** A picture in a prompt. */
export type ImageSpan = {
  picture: Picture;
  /** Its tiles as the vision tower takes them. */
  tiled: Tiled;
  /** Its tokens in the prompt's ids: [start, end). */
  start: number;
  end: number;
  /** What each token stands for, from `start` on. */
  places: TokenPlace[];
};

/** What a model is asked: token ids with an image token for every feature of a picture. */
export type Prompt = {
  text: string;
  ids: number[];
  images: ImageSpan[];
  /** What a decoder behind an encoder begins with, and goes on from (BLIP's captions); default: its start token. */
  start?: number[];
};

/** A model that answers about pictures. */
export type VisionLanguageModel<P = unknown> = Loaded<P> & {
  tokenizer: Tokenizer;
  language: LanguageModel;
  /** What stands for a picture in a prompt's text, e.g. "<image>" or "<IMG_CONTEXT>". */
  imageMark: string;
  /**
   * A prompt's ids with every picture's tokens in its place. tiles: how pictures are cut this time, e.g. { max_patches: 4 }.
   * @throws RangeError when the text's image marks and the pictures differ in number
   */
  prompt(text: string, pictures: Picture[], tiles?: TileOverrides): Prompt;
  /**
   * What the language model reads at the prompt's positions from `from` on (default all; pictures before it are not computed again): [1, N - from, D].
   * @throws RangeError when image tokens and features differ in number, naming the token budget
   */
  embedPrompt(prompt: Prompt, options?: { from?: number; tap?: Tap }): tf.Tensor3D;
  /** The same model around another parameter tree (with adapters attached or merged). Shares everything else. */
  with(params: P): VisionLanguageModel<P>;
};
