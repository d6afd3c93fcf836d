/** Greedy answers, token by token with a cache, of a decoder or of an encoder and its decoder. */
import { tf } from "vitrine/engine";
import type { LanguageModel, Prompt, VisionLanguageModel } from "vitrine/models/loaded";
import { type Cases, type Checks, FLOAT, type Oracle } from "./check";

/** The likeliest token after each, `steps` times. embeddings: [1, N, D] of the prompt -> ids, and scores [steps, V] */
export async function greedy(
  language: LanguageModel,
  embeddings: tf.Tensor3D,
  steps: number,
): Promise<{ ids: number[]; logits: tf.Tensor }> {
  const one = (id: number) => language.embed(tf.tensor2d([id], [1, 1], "int32"));
  const states = language.encoder?.encode({ embeddings });
  const cache = language.makeCache(steps + (states ? 0 : embeddings.shape[1]));
  const [ids, rows]: [number[], tf.Tensor[]] = [[], []];
  for (let i = 0; i < steps; i++) {
    const row = tf.tidy(() => {
      const first = language.encoder ? one(language.encoder.startToken) : embeddings;
      const hidden = language.forward({ embeddings: i === 0 ? first : one(ids[i - 1]), cache, encoded: states && { states } });
      return language.logits(hidden.slice([0, hidden.shape[1] - 1, 0], [1, 1, hidden.shape[2]])).reshape([language.vocabSize]);
    });
    rows.push(row);
    ids.push((await row.argMax().data())[0]);
  }
  cache.dispose();
  states?.dispose();
  const logits = tf.stack(rows);
  tf.dispose(rows);
  return { ids, logits };
}

/** A `generation` case of the oracle. */
export async function checkGeneration(
  oracle: Oracle,
  checks: Checks,
  model: VisionLanguageModel,
  prompt: Prompt,
  wanted: Cases,
): Promise<void> {
  const title = `generation (${wanted.name})`;
  const embeddings = model.embedPrompt(prompt);
  const { ids, logits } = await greedy(model.language, embeddings, wanted.new_ids.length);
  checks.exact(`${title}: ids`, 1, String(ids) === String(wanted.new_ids) ? [] : [`${ids}, expected ${wanted.new_ids}`]);
  await checks.tensor(`${title}: logits`, logits, oracle.array(wanted.step_logits), FLOAT);
  const known = ids.filter((id) => id < model.tokenizer.vocabSize); // a padded table has rows that no token has
  const text = model.tokenizer.decode(known, { skipSpecialTokens: false });
  checks.exact(
    `${title}: text`,
    1,
    text === wanted.text_raw ? [] : [`${JSON.stringify(text)}, expected ${JSON.stringify(wanted.text_raw)}`],
  );
  tf.dispose([embeddings, logits]);
}
