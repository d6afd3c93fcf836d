/** What BLIP's retrieval model and ALBEF are checked for alike: the two losses, their gradients, and LoRA training. */
import { tf } from "vitrine/engine";
import type { Matcher } from "vitrine/models/matcher";
import type { Checks, Oracle } from "./check";
import { channelsLast, integers } from "./check";
import { checkGradients } from "./gradients";
import { checkLora, type Run } from "./lora";

export type Pairs = { pixels: tf.Tensor4D; words: { ids: tf.Tensor2D; padding: tf.Tensor2D } };

/** The inputs of the oracle's forward pass: matching pictures and texts. */
export const pairsOf = (oracle: Oracle): Pairs => ({
  pixels: channelsLast(oracle.array("forward.pixel_values")),
  words: { ids: integers(oracle.array("forward.input_ids")), padding: integers(oracle.array("forward.attention_mask")) },
});

// biome-ignore lint/suspicious/noExplicitAny: of any family
type AnyMatcher = Matcher<any, unknown>;

/** The oracle's losses: negatives of the matching loss are texts moved on by one; LoRA is trained on that loss. */
export function matchingRuns({ pixels, words }: Pairs) {
  const B = pixels.shape[0];
  const withRolled = (x: tf.Tensor2D) => tf.concat([x, x.slice([B - 1, 0], [1, -1]), x.slice([0, 0], [B - 1, -1])]) as tf.Tensor2D;
  return {
    itc: (model: AnyMatcher) => tf.tidy(() => model.loss.contrastive(model.see(pixels), words)),
    itm: (model: AnyMatcher) =>
      tf.tidy(() => {
        const states = model.see(pixels);
        const labels = tf.tensor1d([...new Array(B).fill(1), ...new Array(B).fill(0)], "int32");
        const all = { ids: withRolled(words.ids), padding: withRolled(words.padding) };
        return model.loss.matching(tf.concat([states, states]), all, labels);
      }),
    logits: (model: AnyMatcher): tf.Tensor => tf.tidy(() => model.matchingLogits(model.see(pixels), words)),
  };
}

export async function checkMatching(
  oracle: Oracle,
  checks: Checks,
  model: AnyMatcher,
  runs: ReturnType<typeof matchingRuns>,
): Promise<void> {
  for (const wanted of oracle.cases.gradients) {
    const loss = runs[wanted.name as "itc" | "itm"];
    if (loss) await checkGradients(oracle, checks, model, loss, wanted);
    else checks.exact(`gradients (${wanted.name})`, 1, ["no loss of this name"]);
  }
  const run: Run<AnyMatcher> = { loss: runs.itm, logits: runs.logits };
  for (const wanted of oracle.cases.lora) await checkLora(oracle, checks, model, run, wanted);
}
