/** Every check of an oracle's Ovis2.5 family (test/oracle/ovis2_5/make.py). */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { load, type Prompt, type VisionLanguageModel } from "vitrine/models";
import type { Ovis25Params } from "vitrine/models/ovis25";
import { indicatorEmbeddings } from "vitrine/models/visual-tokenizer";
import { forcedTokens, OVIS_EARLY_STOP, type OvisTurn, ovisPrompt, THINK_END } from "vitrine/text/ovis-chat";
import { type Cases, Checks, FLOAT, type Oracle } from "./check";
import { checkImages } from "./images";
import { checkTokenization } from "./tokenization";
import { checkVisionLanguage, readPictures } from "./vision-language";

const ROLES: { [from: string]: OvisTurn["role"] } = { system: "system", human: "user", gpt: "assistant" };

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
  checkChat(oracle, checks, model);
  for (const wanted of oracle.cases.thinking) await checkThinking(oracle, checks, model, wanted);
  model.dispose();
  return checks.rows;
}

function checkChat(oracle: Oracle, checks: Checks, model: VisionLanguageModel): void {
  for (const { name, turns, thinking, rendered_with_generation_prompt: want, ids } of oracle.cases.chat) {
    const text = ovisPrompt(
      (turns as [string, string][]).map(([from, text]) => ({ role: ROLES[from], text })),
      { thinking },
    );
    checks.exact(`chat: ${name}`, 1, text === want ? [] : [`${JSON.stringify(text)}, expected ${JSON.stringify(want)}`]);
    // The oracle's pictures have two tokens here; ours have none, only their places are compared.
    const own = text
      .split("<image>")
      .flatMap((part, i) => [...(i ? [-301, -300, -300, -302] : []), ...model.tokenizer.encode(part, { addSpecialTokens: false })]);
    checks.exact(`chat: ${name}: ids`, 1, String(own) === String(ids) ? [] : [`${own}, expected ${ids}`]);
  }
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
