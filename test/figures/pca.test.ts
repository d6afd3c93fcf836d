import assert from "node:assert/strict";
import { test } from "node:test";
import { jacobi, pca, xorshift } from "vitrine/figures/pca";
import { projectPca, projectUmap } from "vitrine/figures/projection";
import { rows } from "./inputs";

const close = (a: ArrayLike<number>, b: ArrayLike<number>, atol = 1e-9) => {
  assert.equal(a.length, b.length);
  for (let i = 0; i < a.length; i++) assert.ok(Math.abs(a[i] - b[i]) <= atol, `[${i}] ${a[i]}, expected ${b[i]}`);
};

test("pca() finds the axes of a cross", () => {
  // variances 2 * 9 and 2 * 1 of 20, by hand
  const { components, variance, scores, mean } = pca(
    [
      [13, 5],
      [7, 5],
      [10, 6],
      [10, 4],
    ],
    2,
  );
  close(mean, [10, 5]);
  close(variance, [0.9, 0.1]);
  close(components[0], [1, 0]);
  close(components[1], [0, 1]);
  close(scores[0], [3, 0]);
});

test("pca() gives back rows that lie in as many directions as it has components", () => {
  const x = rows(40, 3, 2).map(([a, b, c]) => [a + b, 2 * b - c, c, a - c, 3 * a + 1, b]); // 3 directions in 6 dimensions
  const { components, variance, scores, mean } = pca(x, 3);
  close([variance.reduce((a, b) => a + b)], [1]);
  x.forEach((row, i) =>
    close(
      row,
      Array.from(mean, (m, j) => m + components.reduce((sum, c, k) => sum + scores[i][k] * c[j], 0)),
    ),
  );
  for (const a of components)
    close(
      components.map((b) => Array.from(a).reduce((s, v, j) => s + v * b[j], 0)),
      components.map((b) => (a === b ? 1 : 0)),
    );
});

test("pca() of wide rows agrees with the eigenvalues of all their products", () => {
  // X X^T has the same eigenvalues as X^T X
  const x = rows(12, 50, 3);
  const { variance, mean } = pca(x, 5);
  const centred = x.map((row) => row.map((v, j) => v - mean[j]));
  const gram = centred.map((a) => centred.map((b) => a.reduce((s, v, j) => s + v * b[j], 0)));
  const { values } = jacobi(gram);
  const total = values.reduce((a, b) => a + b);
  close(
    variance,
    values.slice(0, 5).map((v) => v / total),
    1e-8,
  );
});

test("pca() of equal rows explains nothing and does not fail", () => {
  const { variance, scores } = pca(
    [
      [1, 2, 3],
      [1, 2, 3],
      [1, 2, 3],
      [1, 2, 3],
    ],
    3,
  );
  close(variance, [0, 0, 0]);
  assert.ok(scores.every((row) => row.every((v) => Math.abs(v) < 1e-9)));
});

test("pca() says what is wrong with its input", () => {
  assert.throws(() => pca([[1, 2], [3]], 1), /row 1 has 1 numbers, row 0 has 2/);
  assert.throws(() => pca([[1, Infinity]], 1), /rows\[0\]\[1\] is Infinity/);
  assert.throws(() => pca([[1, 2]], 2), /2 components of 1x2 rows, expected 1 to 1/);
});

test("jacobi() finds eigenvalues and vectors", () => {
  // [[2, 1], [1, 2]]: 3 along (1, 1), 1 along (1, -1)
  const { values, vectors } = jacobi([
    [2, 1],
    [1, 2],
  ]);
  close(values, [3, 1]);
  close(vectors[0].map(Math.abs), [Math.SQRT1_2, Math.SQRT1_2]);
  assert.ok(vectors[1][0] * vectors[1][1] < 0);
});

test("projectUmap() keeps groups together, is the same for the same seed, and can be stopped", async () => {
  const next = xorshift(3);
  const x = Array.from({ length: 60 }, (_, i) => Array.from({ length: 40 }, (_v, j) => (j % 3 === i % 3 ? 4 : 0) + next()));
  const points = await projectUmap(x, { seed: 5 });
  const near = points.map(
    (p, i) => points.map((q, j) => ({ j, d: i === j ? Infinity : (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2 })).sort((a, b) => a.d - b.d)[0].j,
  );
  assert.ok(
    near.every((j, i) => j % 3 === i % 3),
    "each point's nearest neighbour is of its own group",
  );
  assert.deepEqual(await projectUmap(x, { seed: 5 }), points);
  assert.notDeepEqual(await projectUmap(x, { seed: 6 }), points);
  const stopped = await projectUmap(x, { seed: 5, signal: AbortSignal.abort() });
  assert.equal(stopped.length, 60);
  await assert.rejects(projectUmap(rows(3001, 2)), /3001 rows, expected 4 to 3000/);
});

test("projectPca() gives two numbers a row", () =>
  assert.deepEqual(
    projectPca([
      [3, 0],
      [-3, 0],
      [0, 1],
      [0, -1],
    ]).map((p) => p.map(Math.round)),
    [
      [3, 0],
      [-3, 0],
      [0, 1],
      [0, -1],
    ],
  ));
