/** The order in which training sees its examples. */
import { mixSeeds, random, shuffle } from "./random";

/** seed: of the order; epochs: passes over the items, `Infinity` allowed; dropLast: leave out a last batch that is not full. */
export type BatchOptions = { seed: number; epochs?: number; dropLast?: boolean };

/**
 * Yields batches of `batchSize` items, each epoch in a new order that depends only on the seed and the epoch's number.
 * By default one epoch, the smaller last batch kept; with `dropLast` the items left out change from epoch to epoch.
 */
export function* shuffledBatches<T>(
  items: readonly T[],
  batchSize: number,
  { seed, epochs = 1, dropLast = false }: BatchOptions,
): Generator<T[], void, undefined> {
  const misfits = [
    !(Number.isInteger(batchSize) && batchSize > 0) && `batchSize is ${batchSize}, expected a whole number above 0`,
    !(epochs === Infinity || (Number.isInteger(epochs) && epochs > 0)) &&
      `epochs is ${epochs}, expected a whole number above 0, or Infinity`,
    items.length === 0 && "items is empty",
    dropLast && items.length < batchSize && `dropLast leaves nothing: ${items.length} items do not fill one batch of ${batchSize}`,
  ].filter(Boolean);
  if (misfits.length) throw new RangeError(`shuffledBatches: ${misfits.join("; ")}`);

  for (let epoch = 0; epoch < epochs; epoch++) {
    const order = shuffle(items, random(mixSeeds(seed, epoch)));
    const end = dropLast ? order.length - (order.length % batchSize) : order.length;
    for (let i = 0; i < end; i += batchSize) yield order.slice(i, i + batchSize);
  }
}
