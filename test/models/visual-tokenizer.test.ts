/** Ovis's visual words by their definition. */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import {
  embedVisualTokens,
  groupPatches,
  indicatorEmbeddings,
  tokenGrid,
  type VisualTokenizer,
  visualTokens,
} from "vitrine/models/visual-tokenizer";
import { expectClose, expectSame, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const tokenizer = (): VisualTokenizer => ({
  head: { weight: tf.randomNormal([5, 12], 0, 1, "float32", 1) as tf.Tensor2D },
  norm: { weight: tf.ones([5]) as tf.Tensor1D, bias: tf.zeros([5]) as tf.Tensor1D },
  table: tf.randomNormal([7, 4], 0, 1, "float32", 2) as tf.Tensor2D,
});

test("visualTokens() are shares that sum to 1; a word by itself is its row of the table; indicators are the last rows", () =>
  tf.tidy(() => {
    const p = tokenizer();
    const tokens = visualTokens(p, tf.randomNormal([2, 3, 12], 0, 1, "float32", 3) as tf.Tensor3D);
    assert.deepEqual(tokens.shape, [2, 3, 5]);
    expectClose(tokens.sum(-1).dataSync(), new Array(6).fill(1), 1e-6);
    const one = tf.oneHot(tf.tensor2d([[3, 0]], [1, 2], "int32"), 5).cast("float32") as tf.Tensor3D;
    expectSame(embedVisualTokens(p, one).dataSync(), tf.gather(p.table, [3, 0]).dataSync());
    const mixed = embedVisualTokens(p, tf.tensor3d([[[0.25, 0, 0, 0.75, 0]]])).dataSync();
    const rows = p.table.arraySync();
    expectClose(
      mixed,
      rows[0].map((x, i) => 0.25 * x + 0.75 * rows[3][i]),
      1e-6,
    );
    expectSame(indicatorEmbeddings(p, 2).dataSync(), rows.slice(5).flat());
  }));

test("groupPatches() puts neighbours side by side, row before column, and fills an incomplete group with zeros", () =>
  tf.tidy(() => {
    const x = tf.range(1, 7).reshape([1, 6, 1]) as tf.Tensor3D; // 2 rows of 3
    expectSame(groupPatches(x, { rows: 2, columns: 3 }, 2).dataSync(), [1, 2, 4, 5, 3, 0, 6, 0]);
    assert.deepEqual(tokenGrid({ rows: 2, columns: 3 }, 2), { rows: 1, columns: 2 });
    assert.equal(groupPatches(x, { rows: 2, columns: 3 }, 1), x);
  }));

test("groupPatches() refuses a number of patches that is not the grid's", async () => {
  await messageOf(() => groupPatches(tf.zeros([1, 5, 1]), { rows: 2, columns: 3 }, 2), "5 patches, expected 2 x 3");
});
