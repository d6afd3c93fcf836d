/**
 * Which patches FLAVA hides for masked image modelling: rectangles of random area and shape, until enough is hidden (BEiT, Bao et al. 2022, algorithm 1).
 * The same draws give the masks of transformers' FlavaImageProcessor; Python's generator, which makes them there, is not ours.
 */
import { classOf, KeyReader, needValues } from "./processor-keys";

export type BlockMaskSettings = {
  /** Rows and columns of patches. */
  rows: number;
  columns: number;
  /** Patches to hide, at most; fewer where ten tries found no place for another rectangle. */
  total: number;
  /** Patches of one rectangle. */
  least: number;
  most: number;
  /** Height by width of a rectangle, the smallest and the largest. */
  aspect: [number, number];
};

/** Tries to find a place for a rectangle. */
const TRIES = 10;

/** The keys of a FLAVA folder's processor (class attributes of transformers 5.23 where the file is silent). @throws naming every key that is wrong */
export function loadBlockMask(folder: string): BlockMaskSettings {
  const { path, values } = needValues(folder);
  if (classOf(values) !== "Flava") throw new Error(`${path}: only FlavaImageProcessor hides patches, this is ${classOf(values)}`);
  const keys = new KeyReader(path, values);
  const side = keys.count("input_size_patches", 14);
  const total = keys.count("total_mask_patches", 75, side * side);
  const narrow = keys.factor("mask_group_min_aspect_ratio", 0.3);
  const settings: BlockMaskSettings = {
    ...{ rows: side, columns: side, total },
    least: keys.count("mask_group_min_patches", 16, side * side),
    most: keys.count("mask_group_max_patches", total, side * side),
    aspect: [narrow, keys.factor("mask_group_max_aspect_ratio", 1 / narrow)],
  };
  keys.throwIfMisfit();
  return settings;
}

/**
 * One picture's hidden patches, 1 where a patch is hidden, row by row. next: numbers in [0, 1), such as `random(seed)`. -> [rows * columns]
 *
 * @throws RangeError listing every setting that cannot be
 */
export function blockMask(settings: BlockMaskSettings, next: () => number): Int32Array {
  check(settings);
  const { rows, columns, total, most } = settings;
  const mask = new Int32Array(rows * columns);
  for (let hidden = 0; hidden < total; ) {
    const added = hideOne(mask, settings, Math.min(total - hidden, most), next);
    if (added === 0) break;
    hidden += added;
  }
  return mask;
}

/** Hides one more rectangle with at most `room` patches that are not hidden yet. -> how many those were, 0 where no try fitted */
function hideOne(mask: Int32Array, { rows, columns, least, aspect }: BlockMaskSettings, room: number, next: () => number): number {
  const between = (low: number, high: number) => low + (high - low) * next();
  for (let i = 0; i < TRIES; i++) {
    const area = between(least, room); // above `room` where little is left: overlaps still fit
    const ratio = Math.exp(between(Math.log(aspect[0]), Math.log(aspect[1])));
    const [height, width] = [Math.round(Math.sqrt(area * ratio)), Math.round(Math.sqrt(area / ratio))];
    if (height >= rows || width >= columns) continue;
    const top = Math.floor(next() * (rows - height + 1));
    const left = Math.floor(next() * (columns - width + 1));
    const fresh = Array.from({ length: height * width }, (_, at) => (top + Math.floor(at / width)) * columns + left + (at % width)).filter(
      (place) => mask[place] === 0,
    );
    if (fresh.length === 0 || fresh.length > room) continue;
    for (const place of fresh) mask[place] = 1;
    return fresh.length;
  }
  return 0;
}

function check({ rows, columns, total, least, most, aspect }: BlockMaskSettings): void {
  const misfits = Object.entries({ rows, columns, total, least, most })
    .filter(([, value]) => !Number.isInteger(value) || value < 1)
    .map(([name, value]) => `${name} is ${value}, expected a whole number of at least 1`);
  if (total > rows * columns) misfits.push(`total is ${total}, there are ${rows} x ${columns} patches`);
  if (!(aspect[0] > 0 && aspect[1] >= aspect[0])) misfits.push(`aspect is [${aspect}], expected two numbers above 0, the smaller first`);
  if (misfits.length) throw new RangeError(`blockMask: ${misfits.join("; ")}`);
}
