/** Every check of an oracle's BLIP-2 and InstructBLIP families, with OPT, Llama and T5: text, pictures, each layer, losses, gradients, LoRA, greedy answers. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { readJson } from "vitrine/files/json";
import { readPicture } from "vitrine/image/picture";
import { load } from "vitrine/models";
import { projectPictures, type QueriesConfig, queriesConfig } from "vitrine/models/blip2-generation";
import type { Blip2Generation } from "vitrine/models/blip2-generation-load";
import type { Prompt } from "vitrine/models/loaded";
import { bucketOf } from "vitrine/models/t5-buckets";
import { crossEntropy } from "vitrine/nn/cross-entropy";
import { at, noTap, record, type Recording, type Tap } from "vitrine/nn/tap";
import { ATTENTION, type Cases, channelsLast, Checks, FLOAT, integers, type Oracle } from "./check";
import { checkGeneration } from "./generation";
import { checkGradients } from "./gradients";
import { checkImages } from "./images";
import { checkLora } from "./lora";
import { checkTokenization } from "./tokenization";
import { withPixels } from "./vision-language";

/** Positions that the oracle keeps of the logits of LoRA runs. */
const LAST = 6;

type Inputs = {
  pixels: tf.Tensor4D;
  ids: tf.Tensor2D;
  mask: tf.Tensor2D;
  instruction?: { ids: tf.Tensor2D; padding: tf.Tensor2D };
  /** What the decoder has written. */
  written?: tf.Tensor2D;
};

export async function checkBlip2Generation(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const folder = join(oracle.folder, "model");
  const raw = readJson(join(folder, "config.json"));
  const config = queriesConfig(raw, raw.model_type === "instructblip");
  const model = await load<Blip2Generation>(folder);
  const forward: Cases = oracle.cases.forward[0];
  const inputs = inputsOf(oracle);
  await checkForward(oracle, checks, model, config, forward, inputs);
  const prompts = await checkPrompts(oracle, checks, model, config, forward, inputs);
  for (const [i, wanted] of oracle.cases.generation.entries()) await checkGeneration(oracle, checks, model, prompts[i], wanted);
  await checkTraining(oracle, checks, model, config, inputs);
  if (oracle.cases.relative_position_buckets) checkBuckets(oracle, checks);
  model.dispose();
  return checks.rows;
}

function inputsOf(oracle: Oracle): Inputs {
  const names: string[] = oracle.cases.forward[0].inputs;
  const read = (name: string) => (names.includes(`forward.${name}`) ? integers(oracle.array(`forward.${name}`)) : undefined);
  const [ids, padding] = [read("qformer_input_ids"), read("qformer_attention_mask")];
  return {
    pixels: channelsLast(oracle.array("forward.pixel_values")),
    ids: read("input_ids")!,
    mask: read("attention_mask")!,
    instruction: ids && { ids, padding: padding! },
    written: read("decoder_input_ids"),
  };
}

/** The whole model, as transformers computes it for a batch: the picture's tokens are the first of each row. -> [B, N, V] */
function run(model: Blip2Generation, c: QueriesConfig, inputs: Inputs, tap: Tap = noTap): tf.Tensor3D {
  const { language, params } = model;
  return tf.tidy(() => {
    const pictures = projectPictures(params, c, inputs.pixels, { ...inputs.instruction, tap });
    const words = language.embed(inputs.ids.slice([0, c.num_query_tokens], [-1, -1]));
    const [embeddings, padding, t] = [tf.concat([pictures, words], 1) as tf.Tensor3D, inputs.mask, at(tap, "language")];
    if (!language.encoder) return language.logits(language.forward({ embeddings, padding, tap: t }));
    const states = language.encoder.encode({ embeddings, padding, tap: t });
    return language.logits(language.forward({ embeddings: language.embed(inputs.written!), encoded: { states, padding }, tap: t }));
  });
}

async function checkForward(
  oracle: Oracle,
  checks: Checks,
  model: Blip2Generation,
  config: QueriesConfig,
  wanted: Cases,
  inputs: Inputs,
): Promise<void> {
  const { tap, seen } = record();
  const logits = run(model, config, inputs, tap);
  const see = (name: string, array: string, tolerance = FLOAT) => checks.tensor(name, seen.get(name), oracle.array(array), tolerance);
  const hidden = async (part: string, names: string[] = []) => {
    for (const [i, name] of names.entries()) await see(i ? `${part}.blocks.${i - 1}.resid_post` : `${part}.blocks.0.resid_pre`, name);
  };
  const patterns = async (part: string, which: string, names: string[] = []) => {
    for (const [i, name] of names.entries()) await see(`${part}.blocks.${i}.${which}.pattern`, name, ATTENTION);
  };
  await hidden("vision", wanted.vision_hidden);
  await see("vision.final", wanted.vision_last_hidden_state);
  await checkQFormer(oracle, checks, seen, wanted.qformer);
  if (!inputs.instruction) await see("projector", wanted.language_projection);
  else await see("projector", wanted.language_projection);
  await hidden("language", wanted.lm_hidden ?? wanted.decoder_hidden);
  await hidden("language.encoder", wanted.encoder_hidden);
  await patterns("language.encoder", "attn", wanted.encoder_attention);
  await patterns("language", "attn", wanted.decoder_self_attention);
  await patterns("language", "cross_attn", wanted.decoder_cross_attention);
  if (wanted.encoder_position_bias) {
    await see("language.encoder.final", wanted.encoder_last_hidden_state);
    await see("language.encoder.position_bias", wanted.encoder_position_bias);
    await see("language.position_bias", wanted.decoder_position_bias);
  }
  await checks.tensor("logits", logits, oracle.array(wanted.logits), FLOAT);
  seen.dispose();
  logits.dispose();
}

/** The oracle lists self- and cross-attention of a layer one behind the other. */
export async function checkQFormer(oracle: Oracle, checks: Checks, seen: Recording["seen"], wanted: Cases): Promise<void> {
  const see = (name: string, array: string, tolerance = FLOAT) => checks.tensor(name, seen.get(name), oracle.array(array), tolerance);
  await see("qformer.embed", wanted.hidden[0]);
  const attentions: string[] = [...wanted.self_attention];
  for (let i = 0; i < wanted.hidden.length - 1; i++) {
    await see(`qformer.layers.${i}.self.pattern`, attentions.shift()!, ATTENTION);
    const cross = wanted.cross_attention?.[i];
    if (cross) {
      attentions.shift();
      await see(`qformer.layers.${i}.cross.pattern`, cross, ATTENTION);
    }
    await see(`qformer.layers.${i}.out`, wanted.hidden[i + 1]);
  }
}

/** What `prompt` and `embedPrompt` make of each text and picture: the ids of the batch's rows, and the same embeddings. */
async function checkPrompts(
  oracle: Oracle,
  checks: Checks,
  model: Blip2Generation,
  config: QueriesConfig,
  wanted: Cases,
  inputs: Inputs,
): Promise<Prompt[]> {
  const texts: string[] = wanted.prompts ?? [wanted.prompt];
  const files: string[] = wanted.images ?? [wanted.image];
  const [ids, mask] = [inputs.ids.arraySync(), inputs.mask.arraySync()];
  const pixels = oracle.array("forward.pixel_values");
  const each = pixels.values.length / files.length;
  const prompts: Prompt[] = [];
  const wrong: string[] = [];
  for (const [i, text] of texts.entries()) {
    const prompt = model.prompt(text, [await readPicture(join(oracle.root, files[i]))]);
    const row = ids[i].filter((_, j) => mask[i][j]);
    for (const got of [prompt, model.prompt(`<image>${text}`, [prompt.images[0].picture])])
      if (String(got.ids) !== String(row)) wrong.push(`${got.text}: ${got.ids}, expected ${row}`);
    prompts.push(withPixels(prompt, { values: pixels.values.slice(i * each, (i + 1) * each), shape: [1, ...pixels.shape.slice(1)] }));
  }
  checks.exact("ids of prompts", 2 * texts.length, wrong);
  const [got, want] = tf.tidy(() => {
    const own = projectPictures(model.params, config, inputs.pixels, inputs.instruction);
    const rows = prompts.map((prompt) => model.embedPrompt(prompt).slice([0, 0, 0], [1, config.num_query_tokens, -1]));
    return [tf.concat(rows), own];
  });
  await checks.tensor("embedPrompt: the picture's rows", got, { values: (await want.data()) as Float32Array, shape: want.shape }, FLOAT);
  tf.dispose([got, want]);
  return prompts;
}

/** A decoder's loss is of the next token, of the first prompt alone; an encoder-decoder's of the token itself, of the batch. */
async function checkTraining(oracle: Oracle, checks: Checks, base: Blip2Generation, c: QueriesConfig, inputs: Inputs): Promise<void> {
  const labels = integers(oracle.array("loss.labels"));
  const used = base.language.encoder ? inputs : firstAlone(inputs);
  const run_ = (model: Blip2Generation) => run(model, c, used);
  const loss = (model: Blip2Generation): tf.Scalar =>
    tf.tidy(() => {
      const logits = run_(model);
      const [B, N, V] = logits.shape;
      if (model.language.encoder) return crossEntropy(logits.reshape([B * N, V]), labels.flatten());
      return crossEntropy(logits.slice([0, 0, 0], [1, N - 1, V]).reshape([N - 1, V]), labels.slice([0, 1], [1, N - 1]).flatten());
    });
  const logits = (model: Blip2Generation) =>
    tf.tidy(() => {
      const all = run_(model);
      return all.slice([0, Math.max(0, all.shape[1] - LAST), 0], [-1, -1, -1]);
    });
  const [forward] = oracle.cases.forward;
  if (forward.loss !== undefined) checks.close("loss", await loss(base).data(), [forward.loss], FLOAT);
  for (const wanted of oracle.cases.gradients ?? []) await checkGradients(oracle, checks, base, loss, wanted);
  for (const wanted of oracle.cases.lora ?? []) await checkLora(oracle, checks, base, { loss, logits }, wanted);
}

/** The first row of a batch without its padding. */
function firstAlone({ pixels, ids, mask, instruction }: Inputs): Inputs {
  const row = (x: tf.Tensor2D, real: tf.Tensor2D): tf.Tensor2D => {
    const kept = (real.arraySync() as number[][])[0];
    return tf.tensor2d([(x.arraySync() as number[][])[0].filter((_, i) => kept[i])], undefined, "int32");
  };
  return {
    pixels: pixels.slice([0, 0, 0, 0], [1, -1, -1, -1]),
    ids: row(ids, mask),
    mask: row(mask, mask),
    instruction: instruction && { ids: row(instruction.ids, instruction.padding), padding: row(instruction.padding, instruction.padding) },
  };
}

function checkBuckets(oracle: Oracle, checks: Checks): void {
  const { num_buckets, max_distance, relative_position, ...names } = oracle.cases.relative_position_buckets;
  const c = { relative_attention_num_buckets: num_buckets, relative_attention_max_distance: max_distance };
  const distances = [...oracle.array(relative_position).values];
  for (const side of ["encoder", "decoder"]) {
    const want = oracle.array(names[side]).values;
    const wrong = distances.filter((d, i) => bucketOf(d, c, side === "encoder") !== want[i]);
    checks.exact(`position buckets: ${side}`, distances.length, wrong.map(String));
  }
}
