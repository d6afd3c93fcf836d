/**
 * npm run train:emoji-qformer: makes `data/models/emoji-qformer` from emoji-clip and the captions: its picture tower, frozen, a vocabulary, and a small Q-Former
 * trained by BLIP-2's three objectives, with its recipe, its curve, and what it can do with pictures it has never seen. `-- --steps N --out DIR`.
 */
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { captionsOf, trainingCaption } from "../data/captions";
import { dataset, type ImageText } from "../data/index";
import { mixSeeds, random } from "../data/random";
import { interruptOnCtrlC, interruptSignal } from "../engine/interrupt";
import { engine } from "../engine/index";
import { tf } from "../engine/tf";
import { writeFileAtomic } from "../files/atomic";
import { jsonText } from "../files/json";
import { resolveModel } from "../files/hub";
import type { Picture } from "../image/picture";
import { CLIP_MEAN, CLIP_STD } from "../image/processor-config";
import { blip2Config, blip2Spec, TEMPERATURE } from "../models/blip2";
import type { Blip2 } from "../models/blip2-load";
import { load } from "../models/index";
import { saveModel } from "../models/save";
import { withTrainable } from "../nn/trainable";
import { trainWordPiece } from "../text/word-piece";
import { jitter } from "./augment";
import { clipAsEva } from "./clip-as-eva";
import { recordRun } from "./carry-out";
import { freshWeights } from "./fresh";
import { type Row, train } from "./loop";
import { measureStageOne } from "./measure-stage-one";
import { picturesSeen, type StageOneBatch, type StageOneData, stageOneBatches, stageOneLosses } from "./stage-one";

/** Everything that decides the result; committed beside the weights. */
const recipe = {
  data: "emoji (Twemoji style), split train, English captions, without skin tones",
  vision: "emoji-clip's picture tower, frozen",
  /** Of each picture: as it is, and so many changed ones, whose states are computed once. */
  views: 10,
  augment: { shift: 0.08, zoom: 0.2, turn: 10, colour: 0.1 },
  vocabSize: 2048,
  contextLength: 32,
  queries: 16,
  projection: 128,
  qformer: { hidden_size: 128, intermediate_size: 512, num_hidden_layers: 4, num_attention_heads: 4, cross_attention_frequency: 2 },
  /** Of the loss, and of drawing negatives: most wrong pairs are to differ in kind, and not in a detail. */
  temperature: TEMPERATURE,
  negativeTemperature: 0.5,
  hiding: { patches: 0.25, words: 0.15 },
  batchSize: 96,
  steps: 800,
  learningRate: 1e-3,
  warmupSteps: 0.05,
  schedule: "cosine" as const,
  weightDecay: 0.2,
  betas: [0.9, 0.98] as [number, number],
  maxGradNorm: 1,
  bf16: true,
  seed: 0,
};

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { steps: { type: "string" }, out: { type: "string" } } });
  const steps = values.steps ? Number(values.steps) : recipe.steps;
  const out = values.out ?? join(process.cwd(), "data", "models", "emoji-qformer");
  interruptOnCtrlC();
  console.log((await engine()).why);
  const rows = await dataset("emoji", { split: "train" });
  const start = join(out, "start");
  await writeStart(start, rows);
  const { model, variables } = withTrainable(await load<Blip2>(start), (name) => !name.startsWith("vision_model."));
  const began = performance.now();
  const curve = await fit(model, variables, rows, steps, out);
  const minutes = (performance.now() - began) / 60_000;
  await saveModel(model, out, { dtype: "bfloat16" });
  for (const folder of [start, join(out, "so-far")]) rmSync(folder, { recursive: true, force: true });
  const measured = await measureStageOne(await load<Blip2>(out), await dataset("emoji", { split: "test" }), rows);
  await recordRun(out, { recipe, steps, rows: curve, minutes, results: measured });
}

/** The untrained checkpoint: vocabulary, configs, emoji-clip's tower, random weights of the rest. */
async function writeStart(folder: string, rows: ImageText[]): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const { vocabSize } = await trainWordPiece(
    rows.flatMap((row) => captionsOf(row)),
    { vocabSize: recipe.vocabSize, folder, added: ["[DEC]", "<image>"], modelMaxLength: recipe.contextLength },
  );
  const tower = clipAsEva(await resolveModel("emoji-clip"));
  const raw = configOf(vocabSize, tower.config);
  await freshWeights(folder, blip2Spec(blip2Config(raw), true), { seed: recipe.seed, given: tower.weights });
  const side = Number(tower.config.image_size);
  const files = {
    "config.json": raw,
    "preprocessor_config.json": {
      image_processor_type: "BlipImageProcessor",
      processor_class: "Blip2Processor",
      ...{ do_resize: true, size: { height: side, width: side }, resample: 3 },
      ...{
        do_rescale: true,
        rescale_factor: 1 / 255,
        do_normalize: true,
        image_mean: CLIP_MEAN,
        image_std: CLIP_STD,
        do_convert_rgb: true,
      },
    },
    "processor_config.json": { num_query_tokens: recipe.queries, processor_class: "Blip2Processor" },
  };
  for (const [name, value] of Object.entries(files)) await writeFileAtomic(join(folder, name), jsonText(value));
}

const configOf = (vocabSize: number, vision_config: { [key: string]: unknown }) => ({
  architectures: ["Blip2ForImageTextRetrieval"],
  model_type: "blip-2",
  num_query_tokens: recipe.queries,
  image_text_hidden_size: recipe.projection,
  image_token_index: vocabSize - 1,
  vision_config,
  qformer_config: {
    model_type: "blip_2_qformer",
    ...recipe.qformer,
    hidden_act: "gelu",
    layer_norm_eps: 1e-12,
    encoder_hidden_size: vision_config.hidden_size,
    vocab_size: vocabSize - 1, // <image> stands for the queries and is never looked up
    max_position_embeddings: recipe.contextLength,
    use_qformer_text_input: true,
  },
  // Not part of this stage; transformers makes its default, large one where none is given.
  text_config: {
    model_type: "opt",
    hidden_size: 16,
    word_embed_proj_dim: 16,
    ffn_dim: 16,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    vocab_size: 10,
  },
});

/** The states of every picture: as it is, then its changed views. */
async function dataOf(model: Blip2, rows: ImageText[]): Promise<StageOneData> {
  const next = random(mixSeeds(recipe.seed, 2));
  async function* views(): AsyncGenerator<Picture> {
    for (const row of rows) {
      const picture = await row.image();
      yield picture;
      for (let i = 1; i < recipe.views; i++) yield jitter(picture, next, recipe.augment);
    }
  }
  return {
    count: rows.length,
    states: await picturesSeen(model, views(), rows.length * recipe.views),
    picture: (item, draw) => item * recipe.views + Math.floor(draw() * recipe.views),
    text: (item, draw) => ({ matched: trainingCaption(rows[item], draw), spoken: rows[item].caption }),
  };
}

/** A row of the curve: `loss` is the sum of the three. */
type StageOneRow = Row & { contrastive: number; matching: number; generation: number };

async function fit(model: Blip2, variables: tf.Variable[], rows: ImageText[], steps: number, out: string): Promise<StageOneRow[]> {
  const { batchSize, negativeTemperature, hiding, seed, learningRate, warmupSteps, schedule, weightDecay, betas, maxGradNorm, bf16 } =
    recipe;
  const data = await dataOf(model, rows);
  console.log(`${data.states.count} pictures seen`);
  let parts: tf.Tensor | undefined;
  const loss = (batch: StageOneBatch): tf.Scalar => {
    const losses = Object.values(stageOneLosses(model, batch));
    parts?.dispose();
    parts = tf.keep(tf.stack(losses));
    return tf.addN(losses) as tf.Scalar;
  };
  const curve: StageOneRow[] = [];
  const run = train({
    variables,
    batches: stageOneBatches(model, data, { batchSize, negativeTemperature, hiding, seed }),
    loss,
    ...{ steps, learningRate, warmupSteps, schedule, weightDecay, betas, maxGradNorm, bf16 },
    noDecay: (v) => v.rank < 2,
    signal: interruptSignal(),
  });
  for await (const row of run) {
    const [contrastive, matching, generation] = Array.from(await parts!.data(), (x) => rounded(x, 4));
    const rest = { loss: rounded(row.loss, 4), gradNorm: rounded(row.gradNorm, 3), seconds: rounded(row.seconds, 3) };
    curve.push({ ...row, ...rest, contrastive, matching, generation });
    if (row.step % 20 === 0)
      console.log(
        `step ${row.step}/${steps}  contrastive ${contrastive}  matching ${matching}  generation ${generation}  ${rest.seconds} s`,
      );
    if (row.step % 200 === 0 && row.step < steps) await saveModel(model, join(out, "so-far"), { dtype: "bfloat16" });
  }
  parts?.dispose();
  return curve;
}

const rounded = (x: number, digits: number): number => Number(x.toFixed(digits));

main().catch((error) => {
  console.error((error as Error).message);
  process.exitCode = 1;
});
