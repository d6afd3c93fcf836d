/**
 * Who looks at whom in a Q-Former's self-attention, which queries and text share: the three masks of BLIP-2's first stage (Li et al. 2023, figure 2). The
 * forward pass takes its mask from here, so that what a figure shows of it is what computes.
 */
import { tf } from "../engine/tf";
import { BLOCKED } from "../nn/masks";

/**
 * What a mask is for: `contrastive` (uni-modal: queries and text do not see each other), `matching` (bi-directional: everybody sees everybody),
 * `generation` (multi-modal causal: a text token sees the queries, itself and the text before it; queries see queries).
 */
export const OBJECTIVES = ["contrastive", "matching", "generation"] as const;
export type Objective = (typeof OBJECTIVES)[number];

/** Row i: 1 where token i may look at token j, 0 where not; queries first, then text. */
export type Places = readonly (readonly number[])[];

/**
 * The mask of an objective: [queries + text][queries + text]. With `text` 0 or `queries` 0 it is that of a pass of the queries, or the text, alone.
 *
 * @throws RangeError for an unknown objective, or counts that are no whole numbers from 0
 */
export function attentionPlaces(objective: Objective, queries: number, text: number): number[][] {
  if (!OBJECTIVES.includes(objective))
    throw new RangeError(`attentionPlaces: objective "${objective}" is not known; known: ${OBJECTIVES.join(", ")}`);
  for (const count of [queries, text])
    if (!Number.isInteger(count) || count < 0) throw new RangeError(`attentionPlaces: ${queries} queries and ${text} text tokens`);
  const isQuery = (i: number) => i < queries;
  const sees = {
    contrastive: (i: number, j: number) => isQuery(i) === isQuery(j),
    matching: () => true,
    generation: (i: number, j: number) => isQuery(j) || (!isQuery(i) && j <= i),
  }[objective];
  return tokens(queries + text).map((i) => tokens(queries + text).map((j) => (sees(i, j) ? 1 : 0)));
}

const tokens = (count: number): number[] => Array.from({ length: count }, (_, i) => i);

/** A mask of one's own, checked: of N rows and columns, each 0 or 1. @throws RangeError saying what is wrong, and where */
export function checkPlaces(places: Places, N: number): void {
  const row = places.findIndex((cells) => cells.length !== N);
  if (places.length !== N || row >= 0)
    throw new RangeError(
      `the mask has ${places.length} rows${row >= 0 ? `, row ${row} ${places[row].length} columns` : ""}; queries and text are ${N} tokens`,
    );
  for (const [i, cells] of places.entries())
    for (const [j, cell] of cells.entries())
      if (cell !== 0 && cell !== 1) throw new RangeError(`the mask's row ${i}, column ${j} is ${cell}; expected 1 (sees) or 0`);
}

/** 0 where a token may look, else a large negative number. places: float32 [1, 1, N, N] of 1 and 0 */
export const placesBias = (places: tf.Tensor4D): tf.Tensor4D => tf.tidy(() => tf.scalar(1).sub(places).mul(BLOCKED) as tf.Tensor4D);
