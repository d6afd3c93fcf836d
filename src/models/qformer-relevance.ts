/** What of the picture a word rests on: the queries' attention to it, weighted by the gradient (Selvaraju et al. 2017, as ALBEF and BLIP use it on attention). */
import { take } from "../engine/read";
import { tf } from "../engine/tf";
import { edit } from "../nn/tap";
import type { Blip2Text } from "./blip2";
import type { Blip2 } from "./blip2-load";

export type RelevanceOptions = {
  /** A layer with cross-attention; default: the last one. */
  layer?: number;
  /** What is differentiated: the log-probability of the token, given the picture and the tokens before it, or the odds that picture and text match. */
  of?: "word" | "match";
};

/**
 * For one token of a text, how much each state of the picture counts: Σ over heads and queries of max(0, gradient · weight) in one layer's cross-attention.
 * states: [1, N, Dv] -> N numbers, the class token's first. With `of: "match"` the token is ignored.
 *
 * @param token its place in `text`, from 1 (the first token is given, not said)
 * @throws RangeError for a place or a layer that is not there
 */
export async function wordRelevance(
  model: Blip2,
  states: tf.Tensor3D,
  text: Blip2Text,
  token: number,
  { layer, of = "word" }: RelevanceOptions = {},
): Promise<Float32Array> {
  const { qformer_config: c, num_query_tokens: Q } = model.config;
  const T = text.ids.shape[1];
  const last = Math.floor((c.num_hidden_layers - 1) / c.cross_attention_frequency) * c.cross_attention_frequency;
  const at = layer ?? last;
  if (at % c.cross_attention_frequency !== 0 || at < 0 || at >= c.num_hidden_layers)
    throw new RangeError(`wordRelevance: layer ${at} has no cross-attention; every ${c.cross_attention_frequency} from 0 to ${last} has`);
  if (of === "word" && !(Number.isInteger(token) && token >= 1 && token < T))
    throw new RangeError(`wordRelevance: token is ${token}, expected a place from 1 to ${T - 1}`);
  if (states.shape[0] !== 1 || text.ids.shape[0] !== 1) throw new RangeError("wordRelevance: expected one picture and one text");
  const id = (await text.ids.data())[token];
  const relevance = tf.tidy(() => {
    const shape = [1, c.num_attention_heads, Q, states.shape[1]];
    let pattern: tf.Tensor | undefined;
    const score = (offset: tf.Tensor): tf.Scalar => {
      const { tap } = edit(`qformer.layers.${at}.cross.pattern`, (x) => {
        pattern = tf.keep(x.clone()); // tf.grad frees what is made on the way
        return x.add(offset);
      });
      if (of === "match")
        return model
          .matchingLogits(states, text, { tap })
          .mul(tf.tensor2d([[-1, 1]]))
          .sum() as tf.Scalar;
      const row = model
        .wordLogits(states, text, { tap })
        .slice([0, token - 1, 0], [1, 1, -1])
        .flatten(); // says the token behind it
      return row.slice([id], [1]).sub(row.logSumExp()).sum() as tf.Scalar;
    };
    const gradient = tf.grad(score)(tf.zeros(shape));
    const weighted = gradient.mul(pattern!).relu();
    pattern!.dispose();
    return weighted.sum([0, 1, 2]); //                                            [N]
  });
  return take(relevance);
}
