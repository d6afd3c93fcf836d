import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { defineOp, ops } from "vitrine/engine/op";
import { expectSame, keepsTensorCount } from "../support/close";

before(() => engine().then(() => {}));

test("defineOp() runs its formula, records its gradient and keeps only what the gradient reads", async () => {
  const saved: string[][] = [];
  const scaledProduct = defineOp<{ a: tf.Tensor; b: tf.Tensor }, { scale: number }>("TestProduct", {
    formula: ({ a, b }, { scale }) => a.mul(b).mul(scale),
    saves: { inputs: ["b"], output: true },
    gradient: (dy, kept, { scale }) => {
      saved.push(Object.keys(kept).sort());
      return { a: () => dy.mul(kept.b!).mul(scale), b: () => dy.mul(kept.y!.div(kept.b!)) };
    },
  });
  assert.ok(ops.has("TestProduct"));
  await keepsTensorCount(() =>
    tf.tidy(() => {
      const [a, b] = [tf.tensor1d([1, 2]), tf.tensor1d([3, 4])];
      expectSame(scaledProduct({ a, b }, { scale: 2 }).dataSync(), [6, 16]);
      const [da, db] = tf.grads((x, y) => scaledProduct({ a: x, b: y }, { scale: 2 }).sum())([a, b]);
      expectSame(da.dataSync(), [6, 8]);
      expectSame(db.dataSync(), [2, 4]);
    }),
  );
  assert.deepEqual(saved, [["b", "y"]]);
});

test("defineOp() computes a gradient only for the inputs that are asked for", () => {
  const asked: string[] = [];
  const asking = (name: string, dy: tf.Tensor) => {
    asked.push(name);
    return dy.clone();
  };
  const op = defineOp<{ a: tf.Tensor; b: tf.Tensor }, Record<string, never>>("TestAsked", {
    formula: ({ a, b }) => a.add(b),
    gradient: (dy) => ({
      a: () => asking("a", dy),
      b: () => asking("b", dy),
    }),
  });
  tf.tidy(() => tf.grad((a) => op({ a, b: tf.scalar(1) }, {}))(tf.scalar(2)));
  assert.deepEqual(asked, ["a"]);
});

test("defineOp() takes the kernel of the backend in use before the formula", () => {
  const calls: string[] = [];
  const called = (name: string, y: tf.Tensor) => {
    calls.push(name);
    return y;
  };
  const op = defineOp<{ x: tf.Tensor }, Record<string, never>>("TestKernel", {
    formula: ({ x }) => called("formula", x.mul(2)),
    kernels: {
      [tf.getBackend()]: ({ x }) => called("kernel", x.add(x)),
      "another backend": () => assert.fail("not this one"),
    },
  });
  tf.tidy(() => expectSame(op({ x: tf.scalar(3) }, {}).dataSync(), [6]));
  assert.deepEqual(calls, ["kernel"]);
});

test("defineOp() again under one name: the new definition counts, its gradient too", () => {
  const define = (factor: number) =>
    defineOp<{ x: tf.Tensor }, Record<string, never>>("TestAgain", {
      formula: ({ x }) => x.mul(factor),
      gradient: (dy) => ({ x: () => dy.mul(factor) }),
    });
  const [, second] = [define(2), define(5)];
  tf.tidy(() => {
    expectSame(second({ x: tf.scalar(1) }, {}).dataSync(), [5]);
    expectSame(
      tf
        .grad((x) => second({ x }, {}))(tf.scalar(1))
        .dataSync(),
      [5],
    );
  });
});

test("an op without a gradient says so when one is asked for", () => {
  const op = defineOp<{ x: tf.Tensor }, Record<string, never>>("TestNoGradient", { formula: ({ x }) => x.floor() });
  assert.throws(() => tf.tidy(() => tf.grad((x) => op({ x }, {}))(tf.scalar(1))), /gradient/i);
});
