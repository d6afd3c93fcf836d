/** The one registry of model families, and `load`. */
import { engine } from "../engine/index";
import { type Checkpoint, openCheckpoint } from "../files/checkpoint";
import { type ResolveOptions, resolveModel } from "../files/hub";
import { nearest } from "../files/nearest";
import { type ImageProcessor, loadImageProcessor } from "../image/processor";
import { DTYPES, type Dtype } from "../nn/spec";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer";
import { loadBlipAnswer, loadBlipCaption, loadBlipRetrieval } from "./blip-load";
import { loadBlip2Retrieval } from "./blip2-load";
import type { ClipParams } from "./clip";
import { type ClipWeights, clipWeights } from "./clip-load";
import { loadDualEncoder } from "./dual-encoder";
import { loadFlava } from "./flava";
import { loadBlip2Generation } from "./blip2-generation-load";
import { loadInternVL, loadInternVLChat } from "./internvl-load";
import { loadLlava } from "./llava-load";
import { loadMiniGpt4 } from "./minigpt4";
import { isMiniGpt4 } from "./minigpt4-files";
import { loadOvis2 } from "./ovis2-load";
import { loadOvis25 } from "./ovis25-load";
import type { SiglipParams } from "./siglip";
import { type SiglipWeights, siglipWeights } from "./siglip-load";

export type { BlipRetrieval, BlipTalker } from "./blip-load";
export type { Blip2 } from "./blip2-load";
export type { VisionTextDualEncoder } from "./dual-encoder";
export type { Flava } from "./flava";
export type { DualEncoder, Loaded, Prompt, VisionLanguageModel } from "./loaded";

/** CLIP with the tokenizer and image processor of its checkpoint. */
export type Clip = Omit<ClipWeights, "with"> & {
  /** Numbers of an embedding. */
  width: number;
  tokenizer: Tokenizer;
  imageProcessor: ImageProcessor;
  /** The same model around another parameter tree (with adapters attached or merged). Shares everything else. */
  with(params: ClipParams): Clip;
};

/** SigLIP with the tokenizer and image processor of its checkpoint. */
export type Siglip = Omit<SiglipWeights, "with"> & {
  /** Its texts are padded to their full length, and it reads the padding. */
  readsPadding: true;
  /** Numbers of an embedding. */
  width: number;
  tokenizer: Tokenizer;
  imageProcessor: ImageProcessor;
  /** The same model around another parameter tree (with adapters attached or merged). Shares everything else. */
  with(params: SiglipParams): Siglip;
};

export type LoadOptions = ResolveOptions & {
  /**
   * How frozen matrices are kept: "float32" for parity, "bfloat16" for speed and memory (TensorFlow backend), "int8" and "nf4" for less memory and
   * faster decoding: then the weights of linear layers have 8.25 or 4.13 bits a number, tables and patch convolutions bfloat16 (float32 on
   * other backends). A checkpoint that bitsandbytes has stored in NF4 is kept as it is by "nf4", and widened by the others.
   */
  dtype?: Dtype;
};

type Build = (checkpoint: Checkpoint, dtype: Dtype) => Promise<unknown>;

/** model_type -> how to build it. A new family is one file in this folder and one row here. */
const families: { [modelType: string]: Build } = {
  clip: loadClip,
  siglip: loadSiglip,
  "vision-text-dual-encoder": loadDualEncoder,
  flava: loadFlava,
  blip: byArchitecture({
    BlipForImageTextRetrieval: loadBlipRetrieval,
    BlipForConditionalGeneration: loadBlipCaption,
    BlipForQuestionAnswering: loadBlipAnswer,
  }),
  "blip-2": byArchitecture({
    Blip2ForImageTextRetrieval: loadBlip2Retrieval,
    Blip2ForConditionalGeneration: loadBlip2Generation,
  }),
  internvl: loadInternVL,
  internvl_chat: loadInternVLChat,
  llava: loadLlava,
  llava_llama: loadLlava,
  llava_mistral: loadLlava,
  llava_next: loadLlava,
  llava_onevision: loadLlava,
  ovis2: loadOvis2,
  ovis2_5: loadOvis25,
  ovis: loadOvis25,
  instructblip: loadBlip2Generation,
};

/**
 * Loads a checkpoint in the Hugging Face layout: config.json, safetensors (or pytorch_model.bin) in one file or shards, tokenizer, preprocessor.
 *
 * @param name a folder, a shipped model ("emoji-clip"), or a hub id ("openai/clip-vit-base-patch32", downloaded once into HF_HOME)
 * @typeParam M what the folder holds, where it is no CLIP: `load<Siglip>(folder)`
 * @throws when a file is missing or broken, the family is not known, or weights and config do not fit: every misfit at once
 */
export async function load<M = Clip>(name: string, options: LoadOptions = {}): Promise<M> {
  const { dtype = "float32" } = options;
  if (!DTYPES.includes(dtype)) throw new Error(`load: dtype "${dtype}" is not known; expected ${DTYPES.map((d) => `"${d}"`).join(" or ")}`);
  const chosen = await engine();
  if (dtype === "bfloat16" && !chosen.bfloat16)
    throw new Error(
      `load: dtype "bfloat16" needs the TensorFlow backend, here computes ${chosen.why}. Use "float32", or see \`npm run doctor\``,
    );
  const folder = await resolveModel(name, options);
  if (isMiniGpt4(folder)) return (await loadMiniGpt4(folder, dtype)) as M;
  const checkpoint = openCheckpoint(folder);
  try {
    const modelType = String(checkpoint.config.model_type);
    if (!Object.hasOwn(families, modelType)) throw unknownFamily(folder, modelType);
    return (await families[modelType](checkpoint, dtype)) as M;
  } finally {
    checkpoint.close();
  }
}

function unknownFamily(folder: string, modelType: string): Error {
  const known = Object.keys(families);
  const near = nearest(modelType, known);
  return new Error(
    `${folder}/config.json: model_type "${modelType}" is not known${near ? ` (nearest: ${near})` : ""}; known: ${known.join(", ")}`,
  );
}

/** One of a family's classes, as `architectures` of config.json says. */
function byArchitecture(classes: { [architecture: string]: Build }): Build {
  return (checkpoint, dtype) => {
    const named = (checkpoint.config.architectures ?? []) as string[];
    const known = named.find((name) => Object.hasOwn(classes, name));
    if (known) return classes[known](checkpoint, dtype);
    throw new Error(
      `${checkpoint.folder}/config.json: architectures is ${JSON.stringify(named)}, of which none is known; known for ${checkpoint.config.model_type}: ${Object.keys(classes).join(", ")}`,
    );
  };
}

async function loadClip(checkpoint: Checkpoint, dtype: Dtype): Promise<Clip> {
  const { folder } = checkpoint;
  const [tokenizer, imageProcessor] = [await loadTokenizer(folder), loadImageProcessor(folder)];
  const around = (weights: ClipWeights): Clip => ({
    ...weights,
    width: weights.config.projection_dim,
    tokenizer,
    imageProcessor,
    with: (params) => around(weights.with(params)),
  });
  return around(clipWeights(checkpoint, dtype));
}

async function loadSiglip(checkpoint: Checkpoint, dtype: Dtype): Promise<Siglip> {
  const { folder } = checkpoint;
  const [tokenizer, imageProcessor] = [await loadTokenizer(folder), loadImageProcessor(folder)];
  const around = (weights: SiglipWeights): Siglip => ({
    ...weights,
    readsPadding: true,
    width: weights.config.text_config.projection_size,
    tokenizer,
    imageProcessor,
    with: (params) => around(weights.with(params)),
  });
  return around(siglipWeights(checkpoint, dtype));
}
