/** Every check of an oracle's BLIP families: text, pictures, layers, attention, scores, losses, gradients, LoRA training, greedy captions and answers. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { readPicture } from "vitrine/image/picture";
import { collect, generate } from "vitrine/generate";
import { type BlipRetrieval, type BlipTalker, load } from "vitrine/models";
import type { BlipText } from "vitrine/models/blip";
import { contrastiveLoss, matchingLoss } from "vitrine/models/blip2";
import { noTap, record, type Tap, at } from "vitrine/nn/tap";
import { ATTENTION, type Cases, Checks, channelsLast, FLOAT, integers, type Oracle } from "./check";
import { checkGradients } from "./gradients";
import { checkImages } from "./images";
import { checkLora } from "./lora";
import { checkTokenization } from "./tokenization";

type Seen = ReturnType<typeof record>["seen"];

async function hidden(oracle: Oracle, checks: Checks, seen: Seen, part: string, names: string[], title = part): Promise<void> {
  for (const [i, name] of names.entries()) {
    const place = i === 0 ? `${part}.blocks.0.resid_pre` : `${part}.blocks.${i - 1}.resid_post`;
    await checks.tensor(place.replace(part, title), seen.get(place), oracle.array(name), FLOAT);
  }
}

const inputsOf = (oracle: Oracle) => ({
  pixels: channelsLast(oracle.array("forward.pixel_values")),
  ids: integers(oracle.array("forward.input_ids")),
  padding: integers(oracle.array("forward.attention_mask")),
});

/** Each row goes to the place behind its own, the last to the first. */
const rolled = (x: tf.Tensor2D): tf.Tensor2D => {
  const B = x.shape[0];
  return tf.gather(
    x,
    tf.tensor1d(
      Array.from({ length: B }, (_, i) => (i + B - 1) % B),
      "int32",
    ),
  );
};

export async function checkBlipRetrieval(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const model = await load<BlipRetrieval>(join(oracle.folder, "model"));
  const { pixels, ids, padding } = inputsOf(oracle);
  const [forward]: Cases[] = oracle.cases.forward;
  const [alone, together] = [record(), record()];
  const states = model.see(pixels, together.tap);
  const matching = model.matchingLogits(states, { ids, padding }, together.tap);
  const [images, texts] = [model.encodeImage(pixels), model.encodeText(ids, padding, alone.tap)];
  await hidden(oracle, checks, together.seen, "vision", forward.vision_hidden);
  await checks.tensor("vision.final", states, oracle.array(forward.vision_last_hidden_state), FLOAT);
  await hidden(oracle, checks, alone.seen, "text", forward.text_only_hidden, "text alone");
  await hidden(oracle, checks, together.seen, "text", forward.fused_text_hidden, "text with picture");
  for (const [kind, names] of [["attn", forward.self_attention] as const, ["cross_attn", forward.cross_attention] as const])
    for (const [i, name] of (names as string[]).entries()) {
      const place = `text.blocks.${i}.${kind}.pattern`;
      await checks.tensor(place, together.seen.get(place), oracle.array(name), ATTENTION);
    }
  await checks.tensor("matching", matching, oracle.array(forward.itm_logits), FLOAT);
  await checks.tensor("cosines", model.logits(images, texts), oracle.array(forward.itc_similarity), FLOAT);
  for (const { seen } of [alone, together]) seen.dispose();

  const scores = (one: BlipRetrieval) => tf.tidy(() => one.matchingLogits(one.see(pixels), { ids, padding }));
  const wrong = (one: BlipRetrieval) => one.matchingLogits(one.see(pixels), { ids: rolled(ids), padding: rolled(padding) });
  const losses: { [name: string]: (one: BlipRetrieval) => tf.Scalar } = {
    itm: (one) =>
      tf.tidy(() => matchingLoss(tf.concat([scores(one), wrong(one)]) as tf.Tensor2D, tf.tensor1d([1, 1, 1, 0, 0, 0], "int32"))),
    itc: (one) => tf.tidy(() => contrastiveLoss(one.logits(one.encodeImage(pixels), one.encodeText(ids, padding)))),
  };
  for (const wanted of oracle.cases.gradients ?? []) await checkGradients(oracle, checks, model, losses[wanted.name], wanted);
  for (const wanted of oracle.cases.lora ?? []) await checkLora(oracle, checks, model, { logits: scores, loss: losses.itm }, wanted);
  tf.dispose([pixels, ids, padding, states, matching, images, texts]);
  model.dispose();
  return checks.rows;
}

/**
 * Scores of a batch of texts that are read along (teacher forcing). The decoder looks at all states, those of a question's padding too, as in transformers
 * 5 (its cross-attention takes no mask).
 */
function say(model: BlipTalker, states: tf.Tensor3D, text: { ids: tf.Tensor2D; padding?: tf.Tensor2D }, tap: Tap = noTap) {
  const { language } = model;
  const read = { embeddings: language.embed(text.ids), padding: text.padding, encoded: { states } };
  return language.logits(language.forward({ ...read, tap: at(tap, "language") }));
}

export async function checkBlipCaption(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const model = await load<BlipTalker>(join(oracle.folder, "model"));
  const { pixels, ids, padding } = inputsOf(oracle);
  const [forward]: Cases[] = oracle.cases.forward;
  const { tap, seen } = record();
  const scores = (one: BlipTalker, watch: Tap = noTap) => tf.tidy(() => say(one, one.see(pixels, watch), { ids, padding }, watch));
  const logits = scores(model, tap);
  await hidden(oracle, checks, seen, "language", forward.decoder_hidden, "decoder");
  await checks.tensor("logits", logits, oracle.array(forward.logits), FLOAT);
  seen.dispose();
  await checkGreedy(oracle, checks, model);
  const labels = integers(oracle.array("loss.labels"));
  const loss = (one: BlipTalker) => tf.tidy(() => one.wordLoss(scores(one), labels));
  for (const wanted of oracle.cases.gradients ?? []) await checkGradients(oracle, checks, model, loss, wanted);
  for (const wanted of oracle.cases.lora ?? []) await checkLora(oracle, checks, model, { logits: scores, loss }, wanted);
  tf.dispose([pixels, ids, padding, logits, labels]);
  model.dispose();
  return checks.rows;
}

export async function checkBlipAnswer(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const model = await load<BlipTalker>(join(oracle.folder, "model"));
  const { pixels, ids, padding } = inputsOf(oracle);
  const labels = integers(oracle.array("forward.labels"));
  const [forward]: Cases[] = oracle.cases.forward;
  const { tap, seen } = record();
  const loss = (one: BlipTalker, watch: Tap = noTap) =>
    tf.tidy(() => {
      const question = one.ask(one.see(pixels, watch), { ids, padding }, watch);
      return one.wordLoss(say(one, question, { ids: labels }, watch), labels);
    });
  checks.close("loss", await loss(model, tap).data(), [forward.loss], FLOAT);
  await hidden(oracle, checks, seen, "encoder", forward.question_hidden, "question");
  await hidden(oracle, checks, seen, "language", forward.decoder_hidden, "decoder");
  seen.dispose();
  const first = (x: tf.Tensor2D): tf.Tensor2D => x.slice([0, 0], [1, x.shape[1]]);
  const asked = { ids: first(ids), padding: first(padding) };
  await checkGreedy(oracle, checks, model, asked);
  tf.dispose(asked);
  for (const wanted of oracle.cases.gradients ?? []) await checkGradients(oracle, checks, model, loss, wanted);
  // The reference keeps the loss where others keep logits.
  for (const wanted of oracle.cases.lora ?? []) await checkLora(oracle, checks, model, { logits: loss, loss }, wanted);
  tf.dispose([pixels, ids, padding, labels]);
  model.dispose();
  return checks.rows;
}

/** What the model says, token by token, from its start on. asked: the question as the reference read it, padded to the batch's longest */
async function checkGreedy(oracle: Oracle, checks: Checks, model: BlipTalker, asked?: BlipText): Promise<void> {
  for (const wanted of (oracle.cases.generation ?? []) as Cases[]) {
    const picture = await readPicture(join(oracle.root, wanted.image));
    const prompt = model.prompt(wanted.prompt ?? "", [picture]);
    const { pixels, size } = prompt.images[0].tiled;
    const embeddings = asked
      ? tf.tidy(() => model.ask(model.see(tf.tensor4d(pixels, [1, size.height, size.width, 3])), asked))
      : model.embedPrompt(prompt);
    const start = prompt.start ?? [model.language.encoder!.startToken];
    const count = wanted.sequence.length - start.length;
    const options = { maxNewTokens: count, minNewTokens: count, tokenizer: model.tokenizer };
    const { ids } = await collect(generate(model.language, { ...options, embeddings, start: prompt.start }));
    const said = [...start, ...ids];
    const text = model.tokenizer.decode(said);
    const wrong = [
      ...(String(said) === String(wanted.sequence) ? [] : [`ids are ${said}, expected ${wanted.sequence}`]),
      ...(text === wanted.text ? [] : [`text is ${JSON.stringify(text)}, expected ${JSON.stringify(wanted.text)}`]),
    ];
    checks.exact(`greedy (${wanted.name})`, count, wrong);
    embeddings.dispose();
  }
}
