/**
 * npm run train:emoji-ovis: makes `data/models/emoji-ovis` from nothing: a vocabulary from captions and questions, a small Ovis2 (AIMv2 tower, visual words,
 * Qwen2 decoder) that learns to answer about emoji, its recipe, its curve, and its answers about pictures it has never seen.
 * `-- --steps N --out DIR` changes the length and the place; `-- --measure` only measures again what is there.
 */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { type Drawn, scatter } from "../data/questions";
import { mixSeeds, random } from "../data/random";
import { pixelBatch } from "../embed";
import { interruptOnCtrlC } from "../engine/interrupt";
import { engine, type tf } from "../engine/index";
import { writeFileAtomic } from "../files/atomic";
import { jsonText, readJson } from "../files/json";
import { type Clip, load } from "../models/index";
import { type Ovis2Config, ovis2Config, ovis2Spec, ovis2Vision } from "../models/ovis2";
import type { Ovis2 } from "../models/ovis2-load";
import { saveModel } from "../models/save";
import { follow, leaves } from "../nn/spec";
import { withTrainable } from "../nn/trainable";
import { jitter } from "./augment";
import { clipPatches } from "./connector-data";
import { SHARPNESS } from "./connectors";
import { answerLoss, type Pupil } from "./conversations";
import { chatTemplate, configOf, FRAME, preprocessorOf, processorOf, SPECIAL, tokenizerSettings } from "./emoji-ovis-files";
import { drawings, measureAnswers, talkBatches, writeTalker } from "./emoji-talk";
import { freshWeights } from "./fresh";
import { carryOut, recordRun } from "./carry-out";
import { type Row, train } from "./loop";
import { ovisPupil } from "./ovis-pupil";

/** Everything that decides the result; committed beside the weights. */
const recipe = {
  data: "emoji (Twemoji style), split train, English, skin tones included: colours, groups, counts and places",
  topics: ["colour", "kind", "count", "place"] as const,
  vocabSize: 2048,
  contextLength: 1024,
  imageSize: 64,
  patchSize: 8,
  maxPatches: 4,
  words: 256,
  sharpness: SHARPNESS,
  vision: { hidden_size: 128, intermediate_size: 344, num_hidden_layers: 4, num_attention_heads: 4 },
  text: { hidden_size: 128, intermediate_size: 384, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2 },
  /**
   * The tower first learns to see what emoji-clip's tower sees: the squared difference to its patches, on one emoji or several in a picture. Then it is frozen:
   * the words, their table and the decoder learn from the answers.
   */
  sight: { steps: 400, batchSize: 64, learningRate: 2e-3 },
  batchSize: 32,
  mix: { single: 0.5, scattered: 0.35, pair: 0.15 },
  tiledEvery: 8,
  steps: 1000,
  learningRate: 3e-3,
  warmupSteps: 0.05,
  schedule: "cosine" as const,
  weightDecay: 0.1,
  betas: [0.9, 0.98] as [number, number],
  maxGradNorm: 1,
  bf16: true,
  augment: { shift: 0.1, zoom: 0.25, turn: 12, colour: 0.06 },
  seed: 0,
};
const { imageSize: SIDE } = recipe;
const CELLS = { rows: 2, columns: 2, side: SIDE / 2 };
const measured = { seed: recipe.seed, side: SIDE, names: false };

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { steps: { type: "string" }, out: { type: "string" }, measure: { type: "boolean" } } });
  const steps = values.steps ? Number(values.steps) : recipe.steps;
  const out = values.out ?? join(process.cwd(), "data", "models", "emoji-ovis");
  interruptOnCtrlC();
  console.log((await engine()).why);
  const test = await drawings("test", false, SIDE);
  if (values.measure) return measureAgain(out, test);
  const emoji = await drawings("train", true, SIDE);
  const start = join(out, "start");
  const config = await writeStart(start, emoji);
  const { model, variables } = withTrainable(await load<Ovis2>(start));
  const tower = new Set<unknown>(leaves(ovis2Spec(config).vision).map(({ path }) => follow(model.params.vision, path)));
  const began = performance.now();
  const sight = await learnToSee(
    model,
    config,
    variables.filter((v) => tower.has(v)),
    emoji,
    Math.min(steps, recipe.sight.steps),
  );
  const rows = await fit(
    ovisPupil(model, config, FRAME),
    variables.filter((v) => !tower.has(v)),
    emoji,
    test,
    steps,
  );
  const minutes = (performance.now() - began) / 60_000;
  await saveModel(model, out, { dtype: "bfloat16" });
  rmSync(start, { recursive: true });
  await recordRun(out, { recipe, steps, rows, minutes, results: { sight } });
  await measureAgain(out, test);
}

/** Puts the answers of the model in a folder into its results.json. */
async function measureAgain(folder: string, test: Drawn[]): Promise<void> {
  const pupil = ovisPupil(await load<Ovis2>(folder), ovis2Config(readJson(join(folder, "config.json"))), FRAME);
  const { answers: _, ...rest } = readJson(join(folder, "results.json"));
  await writeFileAtomic(join(folder, "results.json"), jsonText({ ...rest, answers: await measureAnswers(pupil, test, measured) }));
}

/** The untrained checkpoint: vocabulary, configs, random weights. */
const writeStart = (folder: string, emoji: Drawn[]): Promise<Ovis2Config> =>
  writeTalker(
    folder,
    emoji,
    { ...recipe, special: SPECIAL, settings: tokenizerSettings(recipe.contextLength) },
    async (vocabSize, idOf) => {
      const raw = configOf(recipe, vocabSize, idOf);
      const config = ovis2Config(raw);
      const spec = ovis2Spec(config);
      const { name, shape } = spec.tokenizer.norm.weight;
      const sharp = new Float32Array(shape[0]).fill(recipe.sharpness);
      await freshWeights(folder, spec, { seed: recipe.seed, given: { [name]: sharp } });
      const files = {
        "config.json": raw,
        "generation_config.json": { eos_token_id: idOf[FRAME.end] },
        "preprocessor_config.json": preprocessorOf(recipe),
        "processor_config.json": processorOf(recipe),
        "chat_template.jinja": chatTemplate,
      };
      return { config, files };
    },
  );

/** Trains the tower alone; gives the share of the variance of emoji-clip's patches that it does not explain, over the last steps. */
async function learnToSee(model: Ovis2, config: Ovis2Config, variables: tf.Variable[], emoji: Drawn[], steps: number): Promise<object> {
  const { batchSize, learningRate } = recipe.sight;
  const clip = await load<Clip>("emoji-clip");
  const next = random(mixSeeds(recipe.seed, 3));
  const one = () => {
    const it = emoji[Math.floor(next() * emoji.length)];
    return { ...it, picture: jitter(it.picture, next, recipe.augment) };
  };
  const picture = () => (next() < 0.5 ? one() : scatter(Array.from({ length: 1 + Math.floor(next() * 4) }, one), CELLS, next)).picture;
  function* batches() {
    for (;;) yield pixelBatch(clip, Array.from({ length: batchSize }, picture)); // emoji-ovis sees the same pixels as emoji-clip
  }
  const losses: number[] = [];
  const run = train({
    variables,
    batches: batches(),
    loss: (pixels) =>
      ovis2Vision(model.params.vision, config.vision_config, pixels).sub(clipPatches(clip, pixels)).square().mean() as tf.Scalar,
    ...{
      steps,
      learningRate,
      warmupSteps: recipe.warmupSteps,
      schedule: recipe.schedule,
      betas: recipe.betas,
      weightDecay: recipe.weightDecay,
      bf16: recipe.bf16,
    },
    noDecay: (v) => v.rank < 2,
  });
  for await (const { step, loss } of run) {
    losses.push(loss);
    if (step % 50 === 0) console.log(`sight ${step}/${steps}  ${loss.toFixed(3)}`);
  }
  clip.dispose();
  const last = losses.slice(-20);
  return { steps, unexplained: Number((last.reduce((a, b) => a + b, 0) / last.length).toFixed(3)) };
}

const fit = (pupil: Pupil, variables: tf.Variable[], emoji: Drawn[], test: Drawn[], steps: number): Promise<Row[]> =>
  carryOut(recipe, {
    variables,
    batches: talkBatches(pupil.teacher, emoji, recipe, SIDE),
    loss: answerLoss(pupil),
    steps,
    every: 200,
    measure: () => measureAnswers(pupil, test, { ...measured, scenes: 100 }),
  });

main().catch((error) => {
  console.error((error as Error).message);
  process.exitCode = 1;
});
