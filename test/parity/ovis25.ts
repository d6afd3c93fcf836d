/** Every check of an oracle's Ovis2.5 family (test/oracle/ovis2_5/make.py). */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { load, type Prompt, type VisionLanguageModel } from "vitrine/models";
import type { Ovis25Params } from "vitrine/models/ovis25";
import { indicatorEmbeddings } from "vitrine/models/visual-tokenizer";
import { forcedTokens, OVIS_EARLY_STOP, THINK_END } from "vitrine/text/ovis-chat";
import { type Cases, Checks, FLOAT, type Oracle } from "./check";
import { checkImages } from "./images";
import { checkTokenization } from "./tokenization";
import { checkVisionLanguage, readPictures } from "./vision-language";

export async function checkOvis25(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const model = await load<VisionLanguageModel<Ovis25Params>>(join(oracle.folder, "model"));
  const extra = async (seen: { get(name: string): tf.Tensor }, wanted: Cases) => {
    await checks.tensor("visual tokens", seen.get("visual_tokens"), oracle.array(wanted.visual_tokens), FLOAT);
    await checks.tensor("visual embeddings", seen.get("visual_embeddings"), oracle.array(wanted.image_features), FLOAT);
    const want = oracle.array(wanted.indicator_features);
    const indicators = tf.tidy(() => indicatorEmbeddings(model.params.tokenizer, want.shape[0]));
    await checks.tensor("indicators", indicators, want, FLOAT);
    indicators.dispose();
  };
  await checkVisionLanguage(oracle, checks, model, { extra });
  for (const wanted of oracle.cases.thinking) await checkThinking(oracle, checks, model, wanted);
  model.dispose();
  return checks.rows;
}

/** Greedy, with the thoughts cut off when their budget is spent. */
async function checkThinking(oracle: Oracle, checks: Checks, model: VisionLanguageModel, wanted: Cases): Promise<void> {
  const { language, tokenizer } = model;
  const prompt: Prompt = model.prompt(wanted.text, await readPictures(oracle, [wanted.image]));
  const [thinkEnd] = tokenizer.encode(THINK_END, { addSpecialTokens: false });
  const earlyStop = tokenizer.encode(OVIS_EARLY_STOP, { addSpecialTokens: false });
  const rule = { budget: wanted.budget, thinkEnd, endTokens: language.endTokens, earlyStop };
  const most = Math.max(wanted.max_new_tokens, wanted.budget + earlyStop.length);
  const cache = language.makeCache(prompt.ids.length + most);
  const ids: number[] = [];
  let next = tf.tidy(() => model.embedPrompt(prompt));
  while (ids.length < wanted.max_new_tokens && !language.endTokens.includes(ids.at(-1) ?? -1)) {
    const token = tf.tidy(() => {
      const hidden = language.forward({ embeddings: next, cache });
      return language.logits(hidden.slice([0, hidden.shape[1] - 1, 0], [1, 1, hidden.shape[2]])).argMax(-1);
    });
    const added = [(await token.data())[0]];
    added.push(...forcedTokens([...ids, ...added], rule));
    ids.push(...added);
    tf.dispose([token, next]);
    next = tf.tidy(() => language.embed(tf.tensor2d(added, [1, added.length], "int32")).clone());
  }
  next.dispose();
  cache.dispose();
  const title = `thinking (budget ${wanted.budget} of ${wanted.max_new_tokens})`;
  checks.exact(`${title}: ids`, 1, String(ids) === String(wanted.new_ids) ? [] : [`${ids}, expected ${wanted.new_ids}`]);
  checks.exact(
    `${title}: early stop`,
    1,
    OVIS_EARLY_STOP === wanted.early_stop && thinkEnd === wanted.think_end ? [] : ["text or id differs"],
  );
}
