import assert from "node:assert/strict";
import { test } from "node:test";
import { mixSeeds, normal, random, shuffle } from "vitrine/data/random";

const draw = (seed: number, n: number): number[] => {
  const next = random(seed);
  return Array.from({ length: n }, next);
};
const mean = (numbers: number[]): number => numbers.reduce((a, b) => a + b, 0) / numbers.length;

test("random() repeats with its seed and not with another", () => {
  assert.deepEqual(draw(7, 50), draw(7, 50));
  const [a, b] = [draw(0, 20_000), draw(1, 20_000)];
  const correlation = 12 * mean(a.map((x, i) => (x - 0.5) * (b[i] - 0.5)));
  assert.ok(Math.abs(correlation) < 5 / Math.sqrt(20_000), `neighbouring seeds correlate: ${correlation}`);
});

test("random() is uniform on [0, 1): chi-square of 100 bins, and of pairs of neighbours", () => {
  const numbers = draw(3, 100_000);
  assert.ok(numbers.every((x) => x >= 0 && x < 1));
  const chiSquare = (bins: number[], cells: number) => {
    const expected = bins.length / cells;
    const counts = new Array(cells).fill(0);
    for (const bin of bins) counts[bin]++;
    return counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
  };
  const bins = numbers.map((x) => Math.floor(x * 100));
  assert.ok(Math.abs(chiSquare(bins, 100) - 99) < 5 * Math.sqrt(198)); // mean 99, variance 198
  const tens = numbers.map((x) => Math.floor(x * 10));
  const pairs = tens.filter((_, i) => i % 2 === 0).map((x, i) => 10 * x + tens[2 * i + 1]);
  assert.ok(Math.abs(chiSquare(pairs, 100) - 99) < 5 * Math.sqrt(198));
});

test("random() and mixSeeds() refuse seeds that are not whole numbers", () => {
  assert.throws(() => random(0.5), /seed is 0\.5, expected a whole number from 0/);
  assert.throws(() => mixSeeds(1, -1), /seed is -1/);
});

test("mixSeeds() keeps order and large seeds apart", () => {
  const pairs = Array.from({ length: 100 }, (_, a) => Array.from({ length: 100 }, (_, b) => mixSeeds(a, b))).flat();
  assert.ok(new Set(pairs).size > 9_995); // 10,000 draws of 2^32 collide 0.01 times on average
  assert.notEqual(mixSeeds(2 ** 40, 1), mixSeeds(0, 1));
});

test("shuffle() keeps the items and the input, and gives each of 6 orders equally often", () => {
  const next = random(5);
  const input = Object.freeze(["a", "b", "c"]);
  const counts = new Map<string, number>();
  for (let i = 0; i < 6000; i++) {
    const order = shuffle(input, next).join("");
    counts.set(order, (counts.get(order) ?? 0) + 1);
  }
  assert.deepEqual([...counts.keys()].sort(), ["abc", "acb", "bac", "bca", "cab", "cba"]);
  for (const [order, count] of counts) assert.ok(Math.abs(count - 1000) < 5 * 29, `${order}: ${count}`); // standard deviation 28.9
});

test("normal() has mean 0, variance 1 and normal tails", () => {
  const next = random(11);
  const numbers = Array.from({ length: 50_000 }, () => normal(next));
  assert.ok(Math.abs(mean(numbers)) < 5 / Math.sqrt(50_000));
  assert.ok(Math.abs(mean(numbers.map((x) => x * x)) - 1) < 5 * Math.sqrt(2 / 50_000));
  const beyond = mean(numbers.map((x) => (Math.abs(x) > 1.959964 ? 1 : 0))); // 5 % by definition of the quantile
  assert.ok(Math.abs(beyond - 0.05) < 5 * Math.sqrt((0.05 * 0.95) / 50_000));
});
