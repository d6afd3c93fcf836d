/** What the oracle holds of every model that answers about pictures: prompt ids, layers, logits, losses, gradients, LoRA training, greedy answers. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { type Picture, readPicture } from "vitrine/image/picture";
import type { Prompt, VisionLanguageModel } from "vitrine/models";
import { crossEntropy } from "vitrine/nn/cross-entropy";
import { loadAdapter } from "vitrine/nn/peft";
import { at, noTap, record, type Recording, type Tap } from "vitrine/nn/tap";
import { ATTENTION, type Cases, type Checks, FLOAT, type Oracle } from "./check";
import { checkGradients } from "./gradients";
import { checkLora } from "./lora";

/** Positions that the oracle keeps of the logits of LoRA runs. */
const LAST = 6;
const NEW_TOKENS = 16;

const named = (oracle: Oracle, name: string): Cases => oracle.cases.forward.find((f: Cases) => f.name === name);

export const readPictures = (oracle: Oracle, files: string[]): Promise<Picture[]> =>
  Promise.all(files.map((file) => readPicture(join(oracle.root, file))));

/** Our prompt with the reference's pixels, so that what follows is compared on the same numbers. pixels: [pictures or 1, tiles, 3, S, S] or [tiles, 3, S, S] */
export function withPixels(prompt: Prompt, { values, shape }: { values: Float32Array; shape: number[] }): Prompt {
  const [C, H, W] = shape.slice(-3);
  const padded = shape.length === 5 ? shape[1] : undefined; // tiles of each picture, zeros behind
  let done = 0;
  const images = prompt.images.map((span, i) => {
    const first = padded === undefined ? done : i * padded;
    done += span.tiled.count;
    const pixels = new Float32Array(span.tiled.count * H * W * C);
    for (let tile = 0; tile < span.tiled.count; tile++)
      for (let c = 0; c < C; c++)
        for (let j = 0; j < H * W; j++) pixels[(tile * H * W + j) * C + c] = values[((first + tile) * C + c) * H * W + j];
    return { ...span, tiled: { ...span.tiled, pixels, size: { height: H, width: W } } };
  });
  return { ...prompt, images };
}

export type Ask = (model: VisionLanguageModel, text: string, pictures: Picture[]) => Prompt;
const plainly: Ask = (model, text, pictures) => model.prompt(text, pictures);

/** The oracle's `text_raw` of a greedy answer's ids. */
export type TextOf = (model: VisionLanguageModel, ids: number[]) => string;
const decoded: TextOf = (model, ids) => model.tokenizer.decode(ids, { skipSpecialTokens: false });

/** One prompt of the oracle with its own pixels, after a check of its ids. */
async function promptOf(oracle: Oracle, checks: Checks, model: VisionLanguageModel, wanted: Cases, ask: Ask): Promise<Prompt> {
  const inputs = wanted.inputs as string[];
  const named = (end: string) => oracle.array(inputs.find((name) => name.endsWith(end)) as string);
  const prompt = ask(model, wanted.text, await readPictures(oracle, wanted.images ?? [wanted.image]));
  const ids = [...named("input_ids").values];
  checks.exact(`${wanted.name}: ids`, 1, String(prompt.ids) === String(ids) ? [] : [`${prompt.ids.length} ids, expected ${ids.length}`]);
  checks.exact(
    `${wanted.name}: a place for each token`,
    1,
    prompt.images.every((i) => i.places.length === i.end - i.start) ? [] : ["places differ"],
  );
  if (inputs.some((name) => name.endsWith("pixel_values"))) return withPixels(prompt, named("pixel_values"));
  // Pictures in their own size: an array for each.
  const images = prompt.images.map((span, i) => withPixels({ ...prompt, images: [span] }, named(`pixel_values.${i}`)).images[0]);
  return { ...prompt, images };
}

export const run = (model: VisionLanguageModel, prompt: Prompt, tap: Tap = noTap): tf.Tensor3D =>
  tf.tidy(() =>
    model.language.logits(model.language.forward({ embeddings: model.embedPrompt(prompt, { tap }), tap: at(tap, "language") })),
  );

/** Everything of a family. `ask`: how its prompts are made; `extra`: what it alone has, by a recording of the first prompt. */
export async function checkVisionLanguage(
  oracle: Oracle,
  checks: Checks,
  model: VisionLanguageModel,
  {
    ask = plainly,
    extra,
    textOf = decoded,
  }: { ask?: Ask; textOf?: TextOf; extra?(seen: Recording["seen"], wanted: Cases, prompt: Prompt): Promise<void> } = {},
): Promise<void> {
  const wanted = named(oracle, "image_prompt");
  const prompt = await promptOf(oracle, checks, model, wanted, ask);
  await checkForward(oracle, checks, model, wanted, prompt, extra);
  if (named(oracle, "batch_padded")) await checkBatch(oracle, checks, model, named(oracle, "batch_padded"), ask);
  const prompts = new Map<string, Prompt>([["image_prompt", prompt]]);
  const two = named(oracle, "two_images");
  if (two) prompts.set("two_images", await checkTwo(oracle, checks, model, two, ask));
  for (const generation of oracle.cases.generation)
    await checkGreedy(oracle, checks, model, generation, prompts.get(generation.name) ?? model.prompt(generation.text, []), textOf);
  await checkTraining(oracle, checks, model, prompt);
}

async function checkForward(
  oracle: Oracle,
  checks: Checks,
  model: VisionLanguageModel,
  wanted: Cases,
  prompt: Prompt,
  extra?: (seen: Recording["seen"], wanted: Cases, prompt: Prompt) => Promise<void>,
): Promise<void> {
  const { tap, seen } = record();
  const logits = run(model, prompt, tap);
  const hidden = async (part: string, names: string[] = []) => {
    for (const [i, name] of names.entries()) {
      const where = i === 0 ? `${part}.blocks.0.resid_pre` : `${part}.blocks.${i - 1}.resid_post`;
      const want = oracle.array(name);
      await checks.tensor(where, seen.get(where).reshape(want.shape), want, FLOAT);
    }
  };
  await hidden("vision", wanted.vision_hidden);
  await hidden("language", wanted.lm_hidden);
  if (wanted.projector) await checks.tensor("projector", seen.get("projector"), oracle.array(wanted.projector), FLOAT);
  if (wanted.lm_attention_layer0) {
    const pattern = seen.get("language.blocks.0.attn.pattern");
    await checks.tensor("language.blocks.0.attn.pattern", pattern, oracle.array(wanted.lm_attention_layer0), ATTENTION);
  }
  if (wanted.lm_last_hidden_state)
    await checks.tensor("language.final", seen.get("language.final"), oracle.array(wanted.lm_last_hidden_state), FLOAT);
  if (!extra && wanted.image_features) await checkFeatures(oracle, checks, model, prompt, wanted.image_features, "image features");
  await extra?.(seen, wanted, prompt);
  await checks.tensor("logits", logits, oracle.array(wanted.logits), FLOAT);
  await checkFrom(checks, model, prompt);
  seen.dispose();
  logits.dispose();
}

/** The rows of the prompt's embeddings where pictures stand. */
async function checkFeatures(
  oracle: Oracle,
  checks: Checks,
  model: VisionLanguageModel,
  prompt: Prompt,
  name: string,
  title: string,
): Promise<void> {
  const want = oracle.array(name);
  const rows = tf.tidy(() => {
    const all = model.embedPrompt(prompt).squeeze([0]) as tf.Tensor2D;
    return tf.concat(prompt.images.map(({ start, end }) => all.slice([start, 0], [end - start, all.shape[1]]))).reshape(want.shape);
  });
  await checks.tensor(title, rows, want, FLOAT);
  rows.dispose();
}

/** Embedding a prompt's rest gives the same rows as embedding all of it, wherever it begins. */
async function checkFrom(checks: Checks, model: VisionLanguageModel, prompt: Prompt): Promise<void> {
  const [image] = prompt.images;
  for (const from of [image.start + 1, image.end - 1, image.end, prompt.ids.length - 1]) {
    const [all, rest] = tf.tidy(() => {
      const whole = model.embedPrompt(prompt);
      const [, N, D] = whole.shape;
      return [whole.slice([0, from, 0], [1, N - from, D]), model.embedPrompt(prompt, { from })];
    });
    checks.close(`embedPrompt from ${from}`, await rest.data(), await all.data(), { atol: 1e-6, rtol: 0 });
    tf.dispose([all, rest]);
  }
}

/** Two prompts of different lengths in one batch, padded on the tokenizer's side. */
async function checkBatch(oracle: Oracle, checks: Checks, model: VisionLanguageModel, wanted: Cases, ask: Ask): Promise<void> {
  const inputs = wanted.inputs as string[];
  const [ids, mask, pixels] = ["input_ids", "attention_mask", "pixel_values"].map((end) =>
    oracle.array(inputs.find((n) => n.endsWith(end)) as string),
  );
  const [B, N] = ids.shape;
  const each = ids.values.length / B;
  const pictures = await readPictures(oracle, wanted.images);
  const own = (wanted.texts as string[]).map((text, i) => ask(model, text, [pictures[i]]));
  // One prompt around both pictures hands each its own part of the pixels.
  const { images } = withPixels({ text: "", ids: [], images: own.flatMap((p) => p.images) }, pixels);
  const wrong = own.filter((p, i) => {
    const row = [...ids.values.slice(i * each, (i + 1) * each)].filter((_, j) => mask.values[i * each + j] === 1);
    return String(row) !== String(p.ids);
  });
  checks.exact(
    "batch_padded: ids",
    B,
    wrong.map((p) => p.text),
  );
  const logits = tf.tidy(() => {
    const rows = own.map((p, i) => {
      const x = model.embedPrompt({ ...p, images: [images[i]] });
      const before = mask.values[i * each] === 1 ? 0 : N - p.ids.length;
      return x.pad([
        [0, 0],
        [before, N - p.ids.length - before],
        [0, 0],
      ]);
    });
    const padding = tf.tensor2d(Int32Array.from(mask.values), [B, N], "int32");
    const out = model.language.logits(model.language.forward({ embeddings: tf.concat(rows) as tf.Tensor3D, padding }));
    return out.mul(padding.expandDims(2)) as tf.Tensor3D;
  });
  const want = oracle.array(wanted.logits);
  const V = want.shape[2];
  await checks.tensor(
    "batch_padded: logits",
    logits,
    { ...want, values: want.values.map((x, i) => x * mask.values[Math.floor(i / V)]) },
    FLOAT,
  );
  logits.dispose();
}

async function checkTwo(oracle: Oracle, checks: Checks, model: VisionLanguageModel, wanted: Cases, ask: Ask): Promise<Prompt> {
  const prompt = await promptOf(oracle, checks, model, wanted, ask);
  if (wanted.image_features) await checkFeatures(oracle, checks, model, prompt, wanted.image_features, "two_images: image features");
  const logits = run(model, prompt);
  await checks.tensor("two_images: logits", logits, oracle.array(wanted.logits), FLOAT);
  logits.dispose();
  return prompt;
}

/** Greedy decoding with a cache, as many tokens as the oracle has. */
export async function checkGreedy(
  oracle: Oracle,
  checks: Checks,
  model: VisionLanguageModel,
  wanted: Cases,
  prompt: Prompt,
  textOf = decoded,
): Promise<void> {
  const { language } = model;
  const cache = language.makeCache(prompt.ids.length + NEW_TOKENS);
  const [ids, steps]: [number[], tf.Tensor[]] = [[], []];
  for (let i = 0; i < NEW_TOKENS; i++) {
    const logits = tf.tidy(() => {
      const embeddings = i === 0 ? model.embedPrompt(prompt) : language.embed(tf.tensor2d([ids[i - 1]], [1, 1], "int32"));
      const hidden = language.forward({ embeddings, cache });
      return language.logits(hidden.slice([0, hidden.shape[1] - 1, 0], [1, 1, hidden.shape[2]])).reshape([language.vocabSize]);
    });
    ids.push((await logits.argMax().data())[0]);
    steps.push(logits);
  }
  cache.dispose();
  checks.exact(`generation (${wanted.name}): ids`, 1, String(ids) === String(wanted.new_ids) ? [] : [`${ids}, expected ${wanted.new_ids}`]);
  await checks.tensor(`generation (${wanted.name}): logits`, tf.stack(steps), oracle.array(wanted.step_logits), FLOAT);
  tf.dispose(steps);
  const known = ids.filter((id) => id < model.tokenizer.vocabSize); // a padded table has rows that no token has
  checks.exact(`generation (${wanted.name}): text`, 1, textOf(model, known) === wanted.text_raw ? [] : ["the decoded text differs"]);
}

/** Next-token loss where labels are not -100. */
const lossOf = (model: VisionLanguageModel, prompt: Prompt, labels: Int32Array): tf.Scalar =>
  tf.tidy(() => {
    const logits = run(model, prompt);
    const [, N, V] = logits.shape;
    return crossEntropy(logits.slice([0, 0, 0], [1, N - 1, V]).reshape([N - 1, V]), tf.tensor1d(labels.slice(1), "int32"));
  });

async function checkTraining(oracle: Oracle, checks: Checks, model: VisionLanguageModel, prompt: Prompt): Promise<void> {
  const labels = Int32Array.from(oracle.array("loss.labels").values);
  const training = {
    loss: (m: VisionLanguageModel) => lossOf(m, prompt, labels),
    logits: (m: VisionLanguageModel) =>
      tf.tidy(() => {
        const all = run(m, prompt);
        return all.slice([0, all.shape[1] - LAST, 0], [1, LAST, all.shape[2]]);
      }),
  };
  for (const wanted of oracle.cases.gradients ?? []) await checkGradients(oracle, checks, model, training.loss, wanted);
  for (const wanted of oracle.cases.lora ?? []) {
    await checkLora(oracle, checks, model, training, wanted);
    if (!wanted.adapter_trained_old_paths) continue;
    const old = loadAdapter(model, join(oracle.folder, wanted.adapter_trained_old_paths));
    const logits = training.logits(old.model);
    await checks.tensor(`LoRA (${wanted.name}): trained with the paths of the file`, logits, oracle.array(wanted.logits_after), FLOAT);
    logits.dispose();
    old.adapter.dispose();
  }
}
