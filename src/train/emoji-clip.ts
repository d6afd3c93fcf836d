/**
 * npm run train:emoji-clip: makes `data/models/emoji-clip` from nothing: a vocabulary from the captions, a small CLIP trained on the Twemoji style, its
 * recipe, its curve, and its retrieval figures on pictures it has never seen. `-- --steps N --out DIR` changes the length and the place.
 */
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { captionsOf, trainingCaption } from "../data/captions";
import { dataset, type ImageText } from "../data/index";
import { embedImages, embedTexts } from "../embed";
import { interruptOnCtrlC } from "../engine/interrupt";
import { engine, tf } from "../engine/index";
import { type Clip, load } from "../models/index";
import { saveModel } from "../models/save";
import { withTrainable } from "../nn/trainable";
import { retrieval } from "../retrieval";
import { trainBpe } from "../text/bpe";
import { jitter } from "./augment";
import { pairBatches, pairLoss } from "./contrastive";
import { freshClip } from "./fresh";
import { carryOut, recordRun } from "./carry-out";
import type { Row } from "./loop";

/** Everything that decides the result; committed beside the weights. */
const recipe = {
  data: "emoji (Twemoji style), split train, English and Chinese captions, skin tones included",
  vocabSize: 4096,
  contextLength: 32,
  imageSize: 64,
  patchSize: 8,
  vision: { hidden_size: 128, intermediate_size: 512, num_hidden_layers: 6, num_attention_heads: 4 },
  text: { hidden_size: 128, intermediate_size: 512, num_hidden_layers: 4, num_attention_heads: 4 },
  projection_dim: 128,
  batchSize: 128,
  steps: 1000,
  learningRate: 1e-3,
  warmupSteps: 0.05,
  schedule: "cosine" as const,
  weightDecay: 0.2,
  betas: [0.9, 0.98] as [number, number],
  maxGradNorm: 1,
  bf16: true,
  augment: { shift: 0.08, zoom: 0.2, turn: 10, colour: 0.1 },
  seed: 0,
};

const LARGEST_LOGIT_SCALE = Math.log(100); // CLIP, section 2.5

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { steps: { type: "string" }, out: { type: "string" } } });
  const steps = values.steps ? Number(values.steps) : recipe.steps;
  const out = values.out ?? join(process.cwd(), "data", "models", "emoji-clip");
  interruptOnCtrlC();
  console.log((await engine()).why);
  const pairs = [
    ...(await dataset("emoji", { split: "train", skinTones: true })),
    ...(await dataset("emoji", { split: "train", skinTones: true, language: "zh" })),
  ];
  const start = join(out, "start");
  await writeStart(start, pairs);
  const { model, variables } = withTrainable(await load(start));
  const began = performance.now();
  const rows = await fit(model, variables, pairs, steps);
  const minutes = (performance.now() - began) / 60_000;
  await saveModel(model, out, { dtype: "bfloat16" });
  rmSync(start, { recursive: true });
  await recordRun(out, { recipe, steps, rows, minutes, results: { retrieval: await measure(await load(out)) } });
}

/** The untrained checkpoint: vocabulary, config, random weights. */
async function writeStart(folder: string, pairs: ImageText[]): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const { vocabSize } = await trainBpe(
    pairs.flatMap((pair) => captionsOf(pair)),
    { vocabSize: recipe.vocabSize, folder, modelMaxLength: recipe.contextLength },
  );
  await freshClip(folder, clipConfigOf(vocabSize), { seed: recipe.seed });
}

const clipConfigOf = (vocabSize: number) => ({
  architectures: ["CLIPModel"],
  model_type: "clip",
  projection_dim: recipe.projection_dim,
  logit_scale_init_value: 2.6592,
  text_config: {
    model_type: "clip_text_model",
    vocab_size: vocabSize,
    max_position_embeddings: recipe.contextLength,
    hidden_act: "quick_gelu",
    bos_token_id: vocabSize - 2,
    eos_token_id: vocabSize - 1,
    pad_token_id: vocabSize - 1,
    ...recipe.text,
  },
  vision_config: {
    model_type: "clip_vision_model",
    image_size: recipe.imageSize,
    patch_size: recipe.patchSize,
    hidden_act: "quick_gelu",
    ...recipe.vision,
  },
});

function fit(model: Clip, variables: tf.Variable[], pairs: ImageText[], steps: number): Promise<Row[]> {
  const { batchSize, seed } = recipe;
  const logitScale = model.params.logitScale as tf.Variable;
  const batches = pairBatches(model, pairs, {
    batchSize,
    seed,
    caption: trainingCaption,
    augment: (picture, next) => jitter(picture, next, recipe.augment),
  });
  return carryOut(recipe, {
    ...{ variables, batches, loss: pairLoss(model), steps },
    after: () => tf.tidy(() => logitScale.assign(logitScale.clipByValue(0, LARGEST_LOGIT_SCALE))),
    every: 500,
    measure: () => measure(model),
  });
}

/** Retrieval among the plain names of pictures never seen in training, both directions, by language. */
async function measure(model: Clip): Promise<object> {
  const results: { [language: string]: object[] } = {};
  for (const language of ["en", "zh"] as const) {
    const rows = await dataset("emoji", { split: "test", language });
    const images = await embedImages(model, await Promise.all(rows.map((row) => row.image())));
    const texts = await embedTexts(
      model,
      rows.map((row) => row.caption),
    );
    results[language] = (await retrieval(images, texts)).objects();
  }
  return results;
}

main().catch((error) => {
  console.error((error as Error).message);
  process.exitCode = 1;
});
