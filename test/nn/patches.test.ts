import assert from "node:assert/strict";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { isBfloat16, toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import { ops } from "vitrine/engine/op";
import { patchRows, pixelShuffle } from "vitrine/nn/patches";
import { expectSame, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const draw = random(13);
const noise = (...shape: number[]) =>
  tf.tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 2 * draw() - 1),
    shape,
  );

/** The rows as a reshaping of the picture gives them; a rest is cut off. */
function patchify(pixels: tf.Tensor4D, P: number): tf.Tensor {
  const [B, H, W, C] = pixels.shape;
  const [rows, columns] = [Math.floor(H / P), Math.floor(W / P)];
  const whole = pixels.slice([0, 0, 0, 0], [B, rows * P, columns * P, C]).reshape([B, rows, P, columns, P, C]);
  return whole.transpose([0, 1, 3, 5, 2, 4]).reshape([B, rows * columns, C * P * P]);
}

test("patchRows() cuts a picture into patches, and in bfloat16 its numbers rounded", () =>
  tf.tidy(() => {
    for (const [B, H, W, C, P] of [
      [1, 1, 1, 1, 1],
      [2, 28, 42, 3, 14],
      [2, 37, 33, 3, 16],
      [1, 9, 8, 4, 2],
      [0, 8, 8, 3, 4],
      [1, 3, 3, 3, 4],
    ]) {
      const pixels = noise(B, H, W, C) as tf.Tensor4D;
      const [want, rows, half] = [patchify(pixels, P), patchRows(pixels, P), patchRows(pixels, P, "bfloat16")];
      assert.deepEqual(rows.shape, want.shape);
      assert.ok(isBfloat16(half));
      expectSame(rows.dataSync(), want.dataSync(), `[${[B, H, W, C]}] in patches of ${P}`);
      if (want.size) expectSame(toFloat32(half).dataSync(), toFloat32(toBfloat16(want)).dataSync(), "bfloat16");
    }
  }));

/** Tokens whose number is their place in the grid, each written twice. */
const places = (rows: number, columns: number) =>
  tf.tensor3d(
    Array.from({ length: rows * columns * 2 }, (_, i) => Math.floor(i / 2)),
    [1, rows * columns, 2],
  );

test("pixelShuffle() puts the tokens of a group behind each other; InternVL's first version gives the groups column by column", () =>
  tf.tidy(() => {
    const first = (y: tf.Tensor) => (y.arraySync() as number[][][])[0].map((row) => row.filter((_, i) => i % 2 === 0));
    const x = places(4, 4);
    const groups = [
      [0, 1, 4, 5],
      [2, 3, 6, 7],
      [8, 9, 12, 13],
      [10, 11, 14, 15],
    ];
    assert.deepEqual(first(pixelShuffle(x)), groups);
    assert.deepEqual(
      first(pixelShuffle(x, { version: "v1" })),
      [0, 2, 1, 3].map((i) => groups[i]),
    );
    assert.deepEqual(first(pixelShuffle(places(2, 4), { grid: [2, 4] })), groups.slice(0, 2));
    assert.deepEqual(first(pixelShuffle(places(3, 3), { ratio: 3 })), [[0, 1, 2, 3, 4, 5, 6, 7, 8]]);
    const withClass = tf.concat([tf.fill([1, 1, 2], 99), x], 1) as tf.Tensor3D;
    assert.deepEqual(first(pixelShuffle(withClass, { skip: 1 })), groups);
  }));

/** The steps of InternVL's remote code: pairs of columns, then of rows, go into the width, and the axes are turned back but in v1. */
function internvl(x: tf.Tensor3D, version: "v1" | "v2"): tf.Tensor {
  const [B, N, D] = x.shape;
  const side = Math.sqrt(N);
  const half = side / 2;
  const turned = x
    .reshape([B, side, half, 2 * D])
    .transpose([0, 2, 1, 3])
    .reshape([B, half, half, 4 * D]);
  return (version === "v1" ? turned : turned.transpose([0, 2, 1, 3])).reshape([B, N / 4, 4 * D]);
}

test("pixelShuffle() equals InternVL's steps, in both dtypes and both versions, and as formula", () =>
  tf.tidy(() => {
    for (const version of ["v1", "v2"] as const) {
      const x = noise(3, 36, 10) as tf.Tensor3D;
      const want = internvl(x, version).dataSync();
      expectSame(pixelShuffle(x, { version }).dataSync(), want);
      const half = pixelShuffle(toBfloat16(x), { version });
      assert.ok(isBfloat16(half));
      expectSame(toFloat32(half).dataSync(), internvl(toFloat32(toBfloat16(x)), version).dataSync());
      const attributes = { skip: 0, rows: 6, columns: 6, ratio: 2, byColumn: version === "v1" };
      expectSame(ops.get("PixelShuffle")!.formula({ x }, attributes).dataSync(), want);
    }
    assert.deepEqual(pixelShuffle(noise(0, 4, 3) as tf.Tensor3D).shape, [0, 1, 12]);
  }));

test("what does not fit is named all at once", async () => {
  await messageOf(
    () => pixelShuffle(noise(1, 12, 4) as tf.Tensor3D, { version: "v3" as "v1" }),
    "pixelShuffle of x [1,12,4]: 12 tokens are no grid of 3 x 3; say which with { grid: [rows, columns] }",
    "a grid of 3 x 3 does not divide into groups of 2 x 2",
    'version is "v3" (ps_version), known: v1, v2',
  );
  await messageOf(() => patchRows(noise(1, 4, 4, 3) as tf.Tensor4D, 0), "patch size 0, expected a whole number from 1");
});
