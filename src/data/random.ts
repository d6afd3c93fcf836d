/** Seeded random numbers: the same seed gives the same numbers on every machine. Not for secrets. */

/** A source of numbers in [0, 1). */
export type Random = () => number;

/** Scrambles 32 bits so that neighbouring seeds give unrelated streams (the finaliser of MurmurHash3). */
function scramble(bits: number): number {
  let x = bits | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

function checkSeed(seed: number): void {
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw new RangeError(`random: seed is ${seed}, expected a whole number from 0 to ${Number.MAX_SAFE_INTEGER}`);
}

/** One seed out of two numbers (a run's seed and an epoch, say); unlike `a + b` it keeps (1, 2) and (2, 1) apart. */
export function mixSeeds(a: number, b: number): number {
  checkSeed(a);
  checkSeed(b);
  const fold = (n: number) => (n ^ Math.imul(Math.floor(n / 2 ** 32), 0x9e3779b1)) | 0;
  return scramble(scramble(fold(a)) + Math.imul(fold(b), 0x9e3779b1));
}

/**
 * A stream of numbers in [0, 1), 32 random bits each: a counter with an odd step, scrambled (the SplitMix scheme of
 * Steele et al. 2014 on 32 bits; period 2^32). seed: a whole number >= 0.
 */
export function random(seed: number): Random {
  checkSeed(seed);
  let state = mixSeeds(seed, 0);
  return () => {
    state = (state + 0x9e3779b9) | 0;
    return scramble(state) / 2 ** 32;
  };
}

/** A new array with the items in random order (Fisher-Yates): every order is equally likely. The input stays as it is. */
export function shuffle<T>(items: readonly T[], next: Random): T[] {
  const out = items.slice();
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

/** One number of the normal distribution, mean 0 and variance 1 (Box and Muller 1958). */
export const normal = (next: Random): number => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
