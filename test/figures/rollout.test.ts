import assert from "node:assert/strict";
import { test } from "node:test";
import { attentionRollout } from "vitrine/figures/rollout";
import { pattern } from "./inputs";

const plain = (rows: Float64Array[]) => rows.map((row) => Array.from(row, (x) => Number(x.toFixed(12))));
const filled = (n: number, f: (i: number, j: number) => number) =>
  Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_v, j) => f(i, j)));

test("attentionRollout() of two layers by hand", () => {
  // (A1 + I) / 2 = [[1, 0], [1/4, 3/4]], (A2 + I) / 2 = [[1/2, 1/2], [1/2, 1/2]]; the later layer stands on the left
  assert.deepEqual(
    plain(
      attentionRollout([
        [
          [
            [1, 0],
            [0.5, 0.5],
          ],
        ],
        [
          [
            [0, 1],
            [1, 0],
          ],
        ],
      ]),
    ),
    [
      [0.625, 0.375],
      [0.625, 0.375],
    ],
  );
});

test("attentionRollout() of the identity is the identity", () => {
  const eye = filled(4, (i, j) => (i === j ? 1 : 0));
  assert.deepEqual(
    plain(
      attentionRollout([
        [eye, eye],
        [eye, eye],
        [eye, eye],
      ]),
    ),
    eye,
  );
});

test("attentionRollout() of uniform attention tends to uniform", () => {
  // J^2 = J, so ((J + I) / 2)^L = J + (I - J) / 2^L
  const uniform = [filled(4, () => 0.25)];
  assert.deepEqual(
    plain(attentionRollout([uniform, uniform, uniform])),
    filled(4, (i, j) => 0.25 + ((i === j ? 1 : 0) - 0.25) / 8),
  );
});

test("attentionRollout() rows sum to 1 with every fusion and discard ratio", () => {
  const patterns = [pattern(3, 6), pattern(3, 6, 7), pattern(3, 6, 20)];
  for (const headFusion of ["mean", "min", "max"] as const)
    for (const discardRatio of [0, 0.5, 0.9])
      for (const row of attentionRollout(patterns, { headFusion, discardRatio }))
        assert.ok(Math.abs(row.reduce((a, b) => a + b) - 1) < 1e-12);
});

test("attentionRollout() fuses heads and discards as it says", () => {
  const heads = [
    [
      [0.8, 0.2],
      [0.4, 0.6],
    ],
    [
      [0.4, 0.6],
      [0.4, 0.6],
    ],
  ];
  assert.deepEqual(plain(attentionRollout([heads], { headFusion: "max" })), [
    [0.75, 0.25],
    [0.2, 0.8],
  ]); // [1.8, 0.6] / 2.4, [0.4, 1.6] / 2
  assert.deepEqual(plain(attentionRollout([heads], { headFusion: "min" })), [
    [0.875, 0.125],
    [0.2, 0.8],
  ]); // [1.4, 0.2] / 1.6
  // mean [[0.6, 0.4], [0.4, 0.6]]; of the weights on other tokens (0.4 and 0.6) the smaller goes: [1.6, 0] / 1.6
  assert.deepEqual(plain(attentionRollout([heads], { discardRatio: 0.5 })), [
    [1, 0],
    [0.2, 0.8],
  ]);
});

test("attentionRollout() says what is wrong with its input", () => {
  assert.throws(() => attentionRollout([]), /no layers/);
  assert.throws(() => attentionRollout([pattern(1, 3), pattern(1, 4)]), /layer 1 is 4x4, expected 3x3/);
  assert.throws(
    () => attentionRollout([pattern(1, 3)], { headFusion: "median" as "mean" }),
    /headFusion is "median", expected "mean", "min" or "max"/,
  );
  assert.throws(() => attentionRollout([pattern(1, 3)], { discardRatio: 1 }), /discardRatio is 1/);
});
