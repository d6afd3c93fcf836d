/** Embeddings from a model that talks: the state of its language model behind a layer, taken together over a prompt's tokens. */
import { breathe, interruptSignal } from "../engine/interrupt";
import { progress } from "../engine/progress";
import { tf } from "../engine/tf";
import type { Prompt, VisionLanguageModel } from "../models/loaded";
import { unit } from "../models/clip";
import { record } from "../nn/tap";
import type { Embeddings } from "../embed";

/** Over which tokens: the last one, all, those of the pictures, or all others. */
export type Pooling = "last" | "mean" | "image" | "text";
const POOLINGS: readonly string[] = ["last", "mean", "image", "text"];

export type PromptEmbeddingOptions = {
  /** Counted as transformers' `hidden_states`: 0 is what the first block reads, k what block k gives; from the end with a minus, -1 behind the final norm. */
  layer?: number;
  pooling?: Pooling;
  /** Stops early and keeps the vectors made so far; default: the cell's. */
  signal?: AbortSignal;
};

/**
 * Unit vectors of prompts, pictures and texts alike, in one space. With an encoder (T5) they are the encoder's states. A general chat model was not trained
 * for this: a prompt that asks for one word ("Describe the picture in one word:") and `pooling: "last"` make the most of it (Jiang et al. 2024, E5-V).
 *
 * @param prompts of `pipe.prompt(…)` or `model.prompt(…)`
 * @throws RangeError for a layer or pooling that there is not, and for "image" over a prompt without pictures
 * @example const { values } = await embedPrompts(pipe.model, [await pipe.prompt(["Describe it in one word:", picture])], { layer: -2 });
 */
export async function embedPrompts(
  model: VisionLanguageModel,
  prompts: readonly Prompt[],
  { layer = -1, pooling = "last", signal = interruptSignal() }: PromptEmbeddingOptions = {},
): Promise<Embeddings> {
  if (!POOLINGS.includes(pooling)) throw new RangeError(`embedPrompts: pooling is "${pooling}", expected ${POOLINGS.join(", ")}`);
  const rows = prompts.map((prompt, i) => {
    const over = tokensOf(prompt, pooling);
    if (!over.length) throw new RangeError(`embedPrompts: prompts[${i}] has no tokens for pooling "${pooling}"`);
    return over;
  });
  const width = model.language.hiddenSize;
  const parts: Float32Array[] = [];
  const bar = progress(prompts.length, "embed", "prompts");
  try {
    for (const [i, prompt] of prompts.entries()) {
      if (signal.aborted) break;
      const vector = tf.tidy(() => {
        const states = statesBehind(model, prompt, layer).squeeze([0]); //     [N, D]
        const chosen = tf.gather(states, tf.tensor1d(rows[i], "int32")); //    [tokens, D]
        return unit(chosen.mean(0, true) as tf.Tensor2D);
      });
      parts.push((await vector.data()) as Float32Array);
      vector.dispose();
      bar.tick(1);
      await breathe();
    }
  } finally {
    bar.done();
  }
  const values = new Float32Array(parts.length * width);
  parts.forEach((part, i) => values.set(part, i * width));
  return { values, count: parts.length, width };
}

/** The states behind a layer: [1, N, D] */
function statesBehind({ language, embedPrompt }: VisionLanguageModel, prompt: Prompt, layer: number): tf.Tensor3D {
  const embeddings = embedPrompt(prompt);
  const { tap, seen } = record(/^(encoder\.)?blocks\.\d+\.resid_(pre|post)$/);
  try {
    const final = language.encoder ? language.encoder.encode({ embeddings, tap }) : language.forward({ embeddings, tap });
    const name = (k: number, part: string) => (language.encoder ? `encoder.blocks.${k}.${part}` : `blocks.${k}.${part}`);
    const L = seen.names().filter((one) => one.endsWith("resid_post")).length;
    const k = layer < 0 ? layer + L + 1 : layer;
    if (!(Number.isInteger(layer) && k >= 0 && k <= L))
      throw new RangeError(`embedPrompts: layer is ${layer}, expected a whole number from ${-L - 1} to ${L}`);
    if (k === L) return final;
    return (k === 0 ? seen.get(name(0, "resid_pre")) : seen.get(name(k - 1, "resid_post"))).clone() as tf.Tensor3D;
  } finally {
    seen.dispose();
  }
}

function tokensOf({ ids, images }: Prompt, pooling: Pooling): number[] {
  if (pooling === "last") return ids.length ? [ids.length - 1] : [];
  const inPicture = (at: number) => images.some(({ start, end }) => at >= start && at < end);
  const all = ids.map((_, at) => at);
  return pooling === "mean" ? all : all.filter((at) => inPicture(at) === (pooling === "image"));
}
