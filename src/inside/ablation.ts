/** The causal check of an attention figure: what happens to an answer without what the figure points to, beside what happens without as much of anything. */
import { random, shuffle } from "../data/random";
import type { Score } from "./knock-out";

/** What ablations did to a score. */
export type Ablation = {
  /** The model as it is. */
  intact: number;
  /** Without what was chosen. */
  chosen: number;
  /** Without as many places drawn at random, one number for each draw. */
  random: number[];
  /** Places taken away, of how many there were. */
  size: number;
  of: number;
};

/**
 * Takes away what was chosen, and in each of several draws as many places at random out of all that could have been chosen.
 *
 * @param score of `answerWithout` or `activationWithout`
 * @param chosen places that a figure points to: see `heaviest`
 * @param among places that could have been chosen, those that were among them
 * @param draws 16; more make the comparison finer
 * @param signal ends it with the draws that were done
 * @throws RangeError when a chosen place is not among them, or when all of them are chosen and nothing is left to compare with
 */
export async function ablate(
  score: Score,
  chosen: readonly number[],
  { among, draws = 16, seed = 0, signal }: { among: readonly number[]; draws?: number; seed?: number; signal?: AbortSignal },
): Promise<Ablation> {
  const all = [...new Set(among)];
  const places = [...new Set(chosen)];
  const stray = places.find((place) => !all.includes(place));
  if (stray !== undefined) throw new RangeError(`ablate: place ${stray} was chosen and is not in among, the places it was chosen from`);
  if (draws > 0 && places.length > 0 && places.length === all.length)
    throw new RangeError(
      `ablate: all ${all.length} places were chosen, so that every random draw would be the same; choose fewer, give more in among, or draws: 0`,
    );
  const next = random(seed);
  const out: Ablation = { intact: await score([]), chosen: await score(places), random: [], size: places.length, of: all.length };
  for (let draw = 0; draw < draws && !signal?.aborted; draw++) {
    out.random.push(await score(shuffle(all, next).slice(0, places.length)));
    await new Promise((resolve) => setImmediate(resolve)); // lets an interrupt in
  }
  return out;
}

/** The places of the largest weights, heaviest first; of equal ones the first. count: a whole number, or a share below 1 (at least one place). */
export function heaviest(weights: ArrayLike<number>, count: number): number[] {
  const n = count < 1 ? Math.max(1, Math.round(count * weights.length)) : count;
  if (!(Number.isInteger(n) && n > 0 && n <= weights.length))
    throw new RangeError(`heaviest: count is ${count}, expected 1 to ${weights.length}, or a share above 0 and below 1`);
  return Array.from({ length: weights.length }, (_, i) => i)
    .sort((a, b) => weights[b] - weights[a] || a - b)
    .slice(0, n);
}
