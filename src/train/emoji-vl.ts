/**
 * npm run train:emoji-vl: makes `data/models/emoji-vl` from nothing: a vocabulary from captions and questions, a small InternVL (InternViT, pixel shuffle,
 * MLP, Qwen2 decoder) that learns to answer about emoji, its recipe, its curve, and its answers about pictures it has never seen.
 * `-- --steps N --out DIR` changes the length and the place; `-- --measure` only measures again what is there.
 */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { type Drawn, single } from "../data/questions";
import { random, shuffle } from "../data/random";
import { interruptOnCtrlC } from "../engine/interrupt";
import { engine, type tf } from "../engine/index";
import { writeFileAtomic } from "../files/atomic";
import { jsonText, readJson } from "../files/json";
import { loadTileProcessor } from "../image/tiles";
import { load } from "../models/index";
import { type InternVLConfig, type InternVLParams, internVLConfig, internVLSpec } from "../models/internvl";
import type { VisionLanguageModel } from "../models/loaded";
import { saveModel } from "../models/save";
import { withTrainable } from "../nn/trainable";
import { accuracy } from "./answers";
import { answerLoss, internVLPupil, type Pupil } from "./conversations";
import { asked, drawings, measureAnswers, talkBatches, writeTalker } from "./emoji-talk";
import { chatTemplate, configOf, FRAME, preprocessorOf, SPECIAL, tokenizerSettings, videoProcessorOf } from "./emoji-vl-files";
import { freshWeights } from "./fresh";
import { carryOut, recordRun } from "./carry-out";
import type { Row } from "./loop";

type Model = VisionLanguageModel<InternVLParams>;

/** Everything that decides the result; committed beside the weights. */
const recipe = {
  data: "emoji (Twemoji style), split train, English, skin tones included: names, colours, groups, counts and places",
  vocabSize: 2048,
  contextLength: 1024,
  imageSize: 64,
  patchSize: 8,
  maxPatches: 4,
  vision: { hidden_size: 128, intermediate_size: 512, num_hidden_layers: 6, num_attention_heads: 4 },
  text: { hidden_size: 192, intermediate_size: 512, num_hidden_layers: 4, num_attention_heads: 6, num_key_value_heads: 2 },
  batchSize: 64,
  /** Shares of conversations about one emoji, about up to four in one picture, and about two pictures. */
  mix: { single: 0.5, scattered: 0.35, pair: 0.15 },
  /** Every so many batches one is of large pictures, cut into tiles, a quarter as many conversations. */
  tiledEvery: 8,
  steps: 2400,
  learningRate: 1.5e-3,
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
async function main(): Promise<void> {
  const { values } = parseArgs({ options: { steps: { type: "string" }, out: { type: "string" }, measure: { type: "boolean" } } });
  const steps = values.steps ? Number(values.steps) : recipe.steps;
  const out = values.out ?? join(process.cwd(), "data", "models", "emoji-vl");
  interruptOnCtrlC();
  console.log((await engine()).why);
  const test = await drawings("test", false, SIDE);
  if (values.measure) return measureAgain(out, test);
  const emoji = await drawings("train", true, SIDE);
  const start = join(out, "start");
  const config = await writeStart(start, emoji);
  const { model, variables } = withTrainable(await load<Model>(start));
  const pupil = pupilOf(model, config, start);
  const began = performance.now();
  const rows = await fit(pupil, variables, emoji, test, steps);
  const minutes = (performance.now() - began) / 60_000;
  await saveModel(model, out, { dtype: "bfloat16" });
  rmSync(start, { recursive: true });
  await recordRun(out, { recipe, steps, rows, minutes });
  await measureAgain(out, test);
}

/** Puts the answers of the model in a folder into its results.json. */
async function measureAgain(folder: string, test: Drawn[]): Promise<void> {
  const config = internVLConfig(readJson(join(folder, "config.json")));
  const pupil = pupilOf(await load<Model>(folder), config, folder);
  const answers = await measureAnswers(pupil, test, { seed: recipe.seed, side: SIDE });
  const seen = shuffle(await drawings("train", false, SIDE), random(recipe.seed)).slice(0, test.length);
  const named = await accuracy(pupil, asked(seen.map(single), "caption"));
  const { answers: _, ...rest } = readJson(join(folder, "results.json"));
  await writeFileAtomic(join(folder, "results.json"), jsonText({ ...rest, answers: { ...answers, "caption of seen emoji": named } }));
}

/** The untrained checkpoint: vocabulary, configs, random weights. */
const writeStart = (folder: string, emoji: Drawn[]): Promise<InternVLConfig> =>
  writeTalker(
    folder,
    emoji,
    { ...recipe, special: SPECIAL, settings: tokenizerSettings(recipe.contextLength) },
    async (vocabSize, idOf) => {
      const raw = configOf(recipe, vocabSize, idOf);
      const config = internVLConfig(raw);
      await freshWeights(folder, internVLSpec(config), { seed: recipe.seed });
      const files = {
        "config.json": raw,
        "generation_config.json": { eos_token_id: idOf[FRAME.end] },
        "preprocessor_config.json": preprocessorOf(recipe),
        "processor_config.json": { processor_class: "InternVLProcessor", image_seq_length: raw.image_seq_length },
        "video_preprocessor_config.json": videoProcessorOf(recipe),
        "chat_template.jinja": chatTemplate,
      };
      return { config, files };
    },
  );

const pupilOf = (model: Model, config: InternVLConfig, folder: string): Pupil =>
  internVLPupil(model, config, loadTileProcessor(folder), FRAME);

const fit = (pupil: Pupil, variables: tf.Variable[], emoji: Drawn[], test: Drawn[], steps: number): Promise<Row[]> =>
  carryOut(recipe, {
    variables,
    batches: talkBatches(pupil.teacher, emoji, recipe, SIDE),
    loss: answerLoss(pupil),
    steps,
    every: 250,
    measure: () => measureAnswers(pupil, test, { seed: recipe.seed, side: SIDE, scenes: 100 }),
  });

main().catch((error) => {
  console.error((error as Error).message);
  process.exitCode = 1;
});
