/** Every check of an oracle's BLIP families: text, pictures, each layer, heads, losses, gradients, LoRA training, greedy captions and answers. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { collect, generate } from "vitrine/generate";
import { type BlipAnswerer, type BlipCaptioner, type BlipRetrieval, load } from "vitrine/models";
import { record, type Recording, type Tap } from "vitrine/nn/tap";
import { ATTENTION, type Cases, Checks, channelsLast, FLOAT, integers, type Oracle } from "./check";
import { checkGradients } from "./gradients";
import { checkImages } from "./images";
import { checkLora } from "./lora";
import { checkMatching, matchingRuns, pairsOf } from "./matching";
import { checkTokenization } from "./tokenization";

/** Positions that the oracle keeps of the logits of LoRA runs. */
const LAST = 6;

/** The residual stream of every block: what goes into the first, and what comes out of each. */
export async function checkHidden(oracle: Oracle, checks: Checks, seen: Recording["seen"], prefix: string, names: string[]): Promise<void> {
  for (const [i, name] of names.entries()) {
    const at = i ? `${prefix}blocks.${i - 1}.resid_post` : `${prefix}blocks.0.resid_pre`;
    await checks.tensor(at, seen.get(at), oracle.array(name), FLOAT);
  }
}

export async function checkBlipRetrieval(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const blip = await load<BlipRetrieval>(join(oracle.folder, "model"));
  const pairs = pairsOf(oracle);
  const [wanted] = oracle.cases.forward;
  const { tap, seen } = record();
  const states = blip.see(pairs.pixels, tap);
  const texts = blip.encodeWords(pairs.words, tap);
  const logits = blip.matchingLogits(states, pairs.words, { tap });
  await checkHidden(oracle, checks, seen, "vision.", wanted.vision_hidden);
  await checks.tensor("vision.final", states, oracle.array(wanted.vision_last_hidden_state), FLOAT);
  await checkHidden(oracle, checks, seen, "fused.", wanted.fused_text_hidden);
  await checkHidden(oracle, checks, seen, "text.", wanted.text_only_hidden);
  for (const [which, names] of [
    ["attn", wanted.self_attention],
    ["cross_attn", wanted.cross_attention],
  ] as [string, string[]][])
    for (const [i, name] of names.entries()) {
      const at = `fused.blocks.${i}.${which}.pattern`;
      await checks.tensor(at, seen.get(at), oracle.array(name), ATTENTION);
    }
  await checks.tensor("itm logits", logits, oracle.array(wanted.itm_logits), FLOAT);
  const pictures = blip.encodePicture(states);
  await checks.tensor("itc similarities", blip.similarities(pictures, texts), oracle.array(wanted.itc_similarity), FLOAT);
  seen.dispose();
  await checkMatching(oracle, checks, blip, matchingRuns(pairs));
  blip.dispose();
  return checks.rows;
}

type Texts = { ids: tf.Tensor2D; padding: tf.Tensor2D };
const textsOf = (oracle: Oracle): Texts => ({
  ids: integers(oracle.array("forward.input_ids")),
  padding: integers(oracle.array("forward.attention_mask")),
});

export async function checkBlipCaptioner(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const blip = await load<BlipCaptioner>(join(oracle.folder, "model"));
  const [pixels, words] = [channelsLast(oracle.array("forward.pixel_values")), textsOf(oracle)];
  const [wanted] = oracle.cases.forward;
  const { tap, seen } = record();
  const logits = blip.wordLogits(blip.see(pixels), words, { tap });
  await checkHidden(oracle, checks, seen, "language.", wanted.decoder_hidden);
  await checks.tensor("logits", logits, oracle.array(wanted.logits), FLOAT);
  seen.dispose();
  const first = pixels.slice([0, 0, 0, 0], [1, -1, -1, -1]);
  for (const one of oracle.cases.generation) await checkSaid(checks, blip, blip.ask(first, one.prompt ?? undefined), one);
  const loss = (model: BlipCaptioner) => tf.tidy(() => model.loss(model.see(pixels), words));
  const last = (model: BlipCaptioner) =>
    tf.tidy(() => {
      const all = model.wordLogits(model.see(pixels), words);
      return all.slice([0, Math.max(0, all.shape[1] - LAST), 0], [-1, -1, -1]);
    });
  for (const one of oracle.cases.gradients) await checkGradients(oracle, checks, blip, loss, one);
  for (const one of oracle.cases.lora) await checkLora(oracle, checks, blip, { loss, logits: last }, one);
  blip.dispose();
  return checks.rows;
}

export async function checkBlipAnswerer(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const blip = await load<BlipAnswerer>(join(oracle.folder, "model"));
  const [pixels, question] = [channelsLast(oracle.array("forward.pixel_values")), textsOf(oracle)];
  const answer = { ids: integers(oracle.array("forward.labels")) }; // the reference counts padding
  // The reference's decoder looks at a question's padding too.
  const read = (model: BlipAnswerer, tap?: Tap) => ({ states: model.readQuestion(model.see(pixels), question, tap).states });
  const [wanted] = oracle.cases.forward;
  const { tap, seen } = record();
  blip.wordLogits(read(blip, tap), answer, { tap });
  await checkHidden(oracle, checks, seen, "question.", wanted.question_hidden);
  await checkHidden(oracle, checks, seen, "language.", wanted.decoder_hidden);
  seen.dispose();
  const loss = (model: BlipAnswerer) => tf.tidy(() => model.loss(read(model), answer));
  checks.close("loss", await loss(blip).data(), [wanted.loss], FLOAT);
  const states = read(blip).states.slice([0, 0, 0], [1, -1, -1]) as tf.Tensor3D;
  const length = question.padding.slice([0, 0], [1, -1]).sum().dataSync()[0];
  const alone = blip.ask(pixels.slice([0, 0, 0, 0], [1, -1, -1, -1]), "what color is the sky?");
  const want = states.slice([0, 0, 0], [1, length, -1]);
  await checks.tensor(
    "ask: the question's states",
    alone.encoded.states,
    { values: await want.data<"float32">(), shape: want.shape },
    FLOAT,
  );
  for (const one of oracle.cases.generation) await checkSaid(checks, blip, { ...alone, encoded: { states } }, one);
  for (const one of oracle.cases.gradients) await checkGradients(oracle, checks, blip, loss, one);
  const run = { loss, logits: (model: BlipAnswerer) => loss(model) as tf.Tensor };
  for (const one of oracle.cases.lora) await checkLora(oracle, checks, blip, run, one);
  blip.dispose();
  return checks.rows;
}

/** A greedy caption or answer, whose end is put off as long as the reference does. */
async function checkSaid(
  checks: Checks,
  { language, tokenizer }: BlipCaptioner | BlipAnswerer,
  asked: ReturnType<BlipCaptioner["ask"]>,
  { name, sequence, text }: Cases,
): Promise<void> {
  const count = sequence.length - asked.start.length;
  const said = await collect(generate(language, { ...asked, minNewTokens: count, maxNewTokens: count }));
  const got = [...asked.start, ...said.ids];
  checks.exact(`generation (${name}): ids`, 1, String(got) === String(sequence) ? [] : [`${got}, expected ${sequence}`]);
  const spoken = tokenizer.decode(got);
  checks.exact(`generation (${name}): text`, 1, spoken === text ? [] : [`${JSON.stringify(spoken)}, expected ${JSON.stringify(text)}`]);
}
