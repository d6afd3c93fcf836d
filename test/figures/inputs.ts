/** Small inputs for the figures' tests, without any function whose last digit differs between machines. */
import type { Picture } from "vitrine/image/picture";

/** Numbers in [0, 1) in a fixed order (a linear congruence modulo a prime). */
export function numbers(seed: number): () => number {
  let state = seed + 1;
  return () => {
    state = (state * 48271) % 2147483647;
    return (state % 1000) / 1000;
  };
}

/** [n][width] numbers in [0, 1). */
export const rows = (n: number, width: number, seed = 1): number[][] => {
  const next = numbers(seed);
  return Array.from({ length: n }, () => Array.from({ length: width }, next));
};

/** An attention pattern [heads][n][n]; each row sums to 1. */
export const pattern = (heads: number, n: number, seed = 1): number[][][] =>
  Array.from({ length: heads }, (_, h) =>
    rows(n, n, seed + h).map((row) => {
      const sum = row.reduce((a, b) => a + b, 0);
      return row.map((x) => x / sum);
    }),
  );

/** A picture of one colour. */
export const plain = (width: number, height: number, color: readonly [number, number, number] = [200, 40, 60]): Picture => ({
  width,
  height,
  data: Uint8Array.from({ length: width * height * 3 }, (_, i) => color[i % 3]),
});

/** A picture that does not compress. */
export const noise = (width: number, height: number, seed = 1): Picture => {
  const next = numbers(seed);
  return { width, height, data: Uint8Array.from({ length: width * height * 3 }, () => next() * 256) };
};
