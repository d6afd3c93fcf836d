import { take } from "../engine/read";
import { tf } from "../engine/tf";
import type { Blip2Text } from "../models/blip2";
import type { Blip2 } from "../models/blip2-load";
import { attentionPlaces, type Objective, type Places } from "../models/qformer-masks";
import { record } from "../nn/tap";
import type { Figure, Heads } from "./figure";
import { round } from "./numbers";
import { qFormerAttention } from "./qformer-attention";
import { maskGrids } from "./qformer-masks";

export type MaskTrial = {
  /** Nats a token of saying the text, under the mask and under the objective's own. */
  loss: number;
  ownLoss: number;
  /** The masks that the two forward passes used, the own one first; changed cells are outlined. */
  masks: Figure;
  /** The self-attention of every layer under the mask. */
  attention: Figure;
};

/** Changes a mask: gets rows of 1 and 0, queries first, and gives others of the same size. */
export type ChangeMask = (places: number[][], queries: number) => Places;

/**
 * Runs a picture and a text through the Q-Former under a mask of one's own and under the one of image-grounded generation, and shows what became of
 * attention and loss. Both figures are made of what the forward passes recorded, not of what was asked for.
 *
 * @param states of one picture: [1, N, Dv]
 * @param text the picture's, as `model.read([text], "[DEC]")` gives it
 * @param change what to do with the mask, e.g. `(m, q) => m.map((row) => row.map(() => 1))`: everybody sees everybody
 */
export async function maskPlayground(
  model: Blip2,
  states: tf.Tensor3D,
  text: Blip2Text,
  change: ChangeMask,
  { objective = "generation" }: { objective?: Objective } = {},
): Promise<MaskTrial> {
  const queries = model.config.num_query_tokens;
  if (states.shape[0] !== 1 || text.ids.shape[0] !== 1)
    throw new RangeError(`maskPlayground: ${states.shape[0]} pictures and ${text.ids.shape[0]} texts; expected one of each`);
  const own = attentionPlaces(objective, queries, text.ids.shape[1]);
  const changed = change(
    own.map((row) => [...row]),
    queries,
  );
  const [before, after] = [await run(model, states, text, own), await run(model, states, text, changed)];
  const tokens = model.tokenizer.tokens(await text.ids.data());
  const nats = (x: number) => `loss ${round(x, 3)} nats a token`;
  return {
    loss: after.loss,
    ownLoss: before.loss,
    masks: maskGrids(
      [
        { name: `the mask of ${objective}`, places: before.places, note: nats(before.loss) },
        { name: "the changed mask", places: after.places, note: nats(after.loss) },
      ],
      { queries, tokens, title: "Before and after", before: before.places },
    ),
    attention: qFormerAttention(after.patterns, { queries, tokens, title: "Self-attention under the changed mask" }),
  };
}

async function run(model: Blip2, states: tf.Tensor3D, text: Blip2Text, mask: Places) {
  const { tap, seen } = record(/qformer\.mask$|self\.pattern$/);
  const [loss] = await take(tf.tidy(() => model.loss.generation(states, text, { mask, tap })));
  const layers = model.config.qformer_config.num_hidden_layers;
  const patterns = Array.from({ length: layers }, (_, i) => seen.get(`qformer.layers.${i}.self.pattern`));
  const read = async (x: tf.Tensor) => ((await x.array()) as number[][][][])[0];
  const found = { loss, places: (await read(seen.get("qformer.mask")))[0], patterns: (await Promise.all(patterns.map(read))) as Heads[] };
  seen.dispose();
  return found;
}
