import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import { type JitOptions, jit } from "vitrine/engine/jit";
import { frozenWeight } from "vitrine/engine/frozen";
import { hasNative, nativeKernels, withoutNative } from "vitrine/engine/native";
import { quantise } from "vitrine/engine/quantised";
import { crossEntropy, headCrossEntropy } from "vitrine/nn/cross-entropy";
import { autocast, gelu, linearProduct } from "vitrine/nn/ops";
import { expectClose, expectSame, keepsTensorCount, messageOf, take } from "../support/close";
import { noise } from "../native/support";

before(() => engine().then(() => {}));

const quiet: JitOptions = { tell: () => {} };
type One = (x: tf.Tensor) => tf.Tensor;

/** A recorded function's answers for several inputs of one shape are those of the plain one. */
function replays(fn: One, inputs: tf.Tensor[], tolerance: number, what: string): void {
  const recorded = jit(fn);
  for (const x of inputs) tf.tidy(() => expectClose(recorded(x).dataSync(), fn(x).dataSync(), tolerance, what));
  assert.equal(recorded.recordings().length, 1);
  recorded.dispose();
}

/** Ops one at a time: nothing to reorder, so every bit is the same. */
const EXACT: { [name: string]: One } = {
  elementwise: (x) => x.mul(2).add(1),
  "two constants": (x) => x.maximum(0.25).minimum(tf.scalar(0.5)),
  comparison: (x) => x.greater(0),
  int32: (x) => x.mul(10).cast("int32").mod(tf.scalar(3, "int32")),
  where: (x) => tf.where(x.less(0), x.neg(), tf.zerosLike(x)),
  "reshape, transpose": (x) => x.reshape([3, 4]).transpose().expandDims(0).squeeze([0]),
  "slice, concat, pad, tile": (x) => tf.concat([x.slice([0, 1], [2, 2]), x.pad([[0, 0], [0, 1]]).tile([1, 2])], 1), // biome-ignore format: one line
  "unstack, stack": (x) => tf.stack(tf.unstack(x, 1).reverse(), 1),
  split: (x) => tf.split(x, 3, 1)[1]!,
  "gather by constants": (x) => tf.gather(x, tf.tensor1d([1, 0, 1], "int32")),
  "one-hot of the largest": (x) => tf.oneHot(x.argMax(-1).cast("int32") as tf.Tensor1D, 6),
  "largest values": (x) => tf.topk(x, 2).values,
  range: (x) => x.add(tf.range(0, 6)),
  "sum of int32": (x) => x.mul(100).cast("int32").sum(0),
  "an input as it is": (x) => x,
  "what was read in": (x) => x.add(tf.tensor2d([[1], [2]]).dataSync()[1]!),
};

/** Sums whose order TensorFlow chooses. */
const CLOSE: { [name: string]: One } = {
  product: (x) => tf.matMul(x as tf.Tensor2D, x as tf.Tensor2D, false, true),
  softmax: (x) => tf.softmax(x),
  "log softmax": (x) => tf.logSoftmax(x as tf.Tensor2D),
  moments: (x) => tf.moments(x, -1, true).variance,
  norm: (x) => x.div(x.square().sum(-1, true).sqrt()),
  cumsum: (x) => tf.cumsum(x, 1),
  einsum: (x) => tf.einsum("ij,kj->ik", x, x),
  convolution: (x) => tf.conv2d(x.reshape([1, 3, 4, 1]) as tf.Tensor4D, tf.ones([2, 2, 1, 2]), 1, "same"),
  "segment sum": (x) => tf.unsortedSegmentSum(x, tf.tensor1d([1, 1], "int32"), 3),
  gelu,
  bfloat16: (x) => toFloat32(toBfloat16(x)).mul(3),
  gradient: (x) => tf.grad((y: tf.Tensor) => tf.softmax(y).square().sum())(x),
};

test("jit() replays what the function does", async (t) => {
  const inputs = [noise(2, 6), noise(2, 6), noise(2, 6)];
  for (const [cases, tolerance] of [[EXACT, 0], [CLOSE, 1e-6]] as const) // biome-ignore format: one line
    for (const [name, fn] of Object.entries(cases)) await t.test(name, () => keepsTensorCount(() => replays(fn, inputs, tolerance, name)));
  tf.dispose(inputs);
});

test("jit() compiled by XLA gives the same, and says whom to blame where XLA cannot", async () => {
  const x = noise(2, 6);
  const compiled = jit(CLOSE.gradient!, { xla: true });
  expectClose(take(compiled(x)), take(tf.tidy(() => CLOSE.gradient!(x))), 1e-6);
  compiled.dispose();
  const impossible = jit((y: tf.Tensor) => tf.dilation2d(y.reshape([1, 3, 4, 1]) as tf.Tensor4D, tf.ones([2, 2, 1]), 1, "same"), { xla: true, name: "dilate" }); // biome-ignore format: one line
  await messageOf(() => impossible(x), "jit(dilate): TensorFlow could not run the recording; XLA compiles not every op: try without");
  impossible.dispose();
  x.dispose();
});

test("jit() runs the function once for a form of its arguments, and what the results do not need is left out", () => {
  let runs = 0;
  const recorded = jit((x: tf.Tensor) => {
    runs++;
    x.exp().log();
    return x.add(1);
  });
  const x = noise(2, 3);
  for (let i = 0; i < 3; i++) recorded(x).dispose();
  assert.equal(runs, 1);
  const [info] = recorded.recordings();
  assert.deepEqual([info!.form, info!.recorded, info!.nodes, info!.captured], ["[float32[2,3]]", 3, 1, 0]);
  recorded.dispose();
  x.dispose();
});

test("jit() takes and gives lists and objects, and knows equal tensors in different places apart", () => {
  type Batch = { a: tf.Tensor; more: [tf.Tensor, number] };
  const recorded = jit(({ a, more: [b, factor] }: Batch, none: null) => ({ sum: a.add(b.mul(factor)), rest: [a.sub(b), "text", none, a] }), quiet); // biome-ignore format: one line
  const [a, b] = [noise(3), noise(3)];
  for (const [x, y] of [[a, a], [a, b], [b, a]]) // biome-ignore format: one line
    for (const factor of [2, 5])
      tf.tidy(() => {
        const { sum, rest } = recorded({ a: x!, more: [y!, factor] }, null);
        expectSame(sum.dataSync(), x!.add(y!.mul(factor)).dataSync());
        expectSame((rest[0] as tf.Tensor).dataSync(), x!.sub(y!).dataSync());
        assert.deepEqual([rest[1], rest[2]], ["text", null]);
        expectSame((rest[3] as tf.Tensor).dataSync(), x!.dataSync());
      });
  assert.equal(recorded.recordings().length, 2, "a number is part of the form");
  recorded.dispose();
  tf.dispose([a, b]);
});

test("jit() reads variables at every call, and records a whole gradient", async () => {
  const weight = tf.variable(noise(4, 2) as tf.Tensor2D);
  const untouched = weight.clone();
  const plain = (x: tf.Tensor) => {
    const { value, grads } = tf.variableGrads(
      () =>
        tf
          .matMul(x as tf.Tensor2D, weight)
          .softmax()
          .square()
          .sum(),
      [weight],
    );
    return { value, gradient: grads[weight.name]! };
  };
  const recorded = jit(plain);
  const x = noise(3, 4);
  recorded(x).value.dispose();
  await keepsTensorCount(() => {
    for (let step = 0; step < 3; step++)
      tf.tidy(() => {
        const [got, want] = [recorded(x), plain(x)];
        expectClose(got.gradient.dataSync(), want.gradient.dataSync(), 1e-6, `gradient of step ${step}`);
        expectClose(got.value.dataSync(), want.value.dataSync(), 1e-6, `value of step ${step}`);
        weight.assign(weight.sub(got.gradient));
      });
  });
  assert.equal(recorded.recordings()[0]!.captured, 1);
  const both = jit((y: tf.Tensor) => y.add(weight.sum()).add(weight.clone().sum()).add(untouched.sum()));
  tf.tidy(() => {
    const before = both(x).dataSync()[0]!;
    weight.assign(tf.zerosLike(weight));
    expectClose([both(x).dataSync()[0]!], [x.add(untouched.sum()).dataSync()[0]!], 1e-6, "an older copy is no variable");
    assert.notEqual(before, both(x).dataSync()[0]!);
  });
  const copy = weight.clone();
  const confusing = jit((y: tf.Tensor) => y.add(weight.sum()).add(copy.sum()), { name: "confusing" });
  await messageOf(() => confusing(x), "jit(confusing): a copy of the variable", "copy with mul(1)");
  weight.dispose();
  await messageOf(() => recorded(x), "is disposed; make another with jit()");
  [recorded, both, confusing].forEach((one) => one.dispose());
  tf.dispose([x, untouched, copy]);
});

test("jit() holds what it finds outside, and lets it go with the recording", () => {
  const before = tf.memory();
  const [outside, idle] = [noise(64, 64), noise(64, 64)];
  const late = tf.tensor1d([1, 2]); // not yet on the device: still no constant of the function
  const recorded = jit((x: tf.Tensor) => {
    idle.mul(2);
    return tf
      .matMul(x as tf.Tensor2D, outside as tf.Tensor2D)
      .sum()
      .add(late);
  });
  const x = noise(1, 64);
  const want = take(recorded(x));
  tf.dispose([outside, idle, late]);
  assert.equal(tf.memory().numTensors - before.numTensors, 3, "x, and two that are held");
  expectSame(take(recorded(x)), want);
  assert.equal(recorded.recordings()[0]!.captured, 2);
  recorded.dispose();
  x.dispose();
  assert.deepEqual([tf.memory().numTensors, tf.memory().numBytes], [before.numTensors, before.numBytes]);
});

test("jit() keeps a bounded number of recordings, tells when it records again, and drops the one unused for longest", async () => {
  const told: string[] = [];
  const recorded = jit((x: tf.Tensor) => x.mul(2), { name: "twice", maxRecordings: 2, tell: (line) => told.push(line) });
  const call = (n: number) => take(tf.tidy(() => recorded(tf.ones([n]))));
  for (const n of [1, 2, 1, 3, 1]) assert.equal(call(n).length, n);
  assert.deepEqual(
    recorded.recordings().map(({ form }) => form),
    ["[float32[3]]", "[float32[1]]"],
  );
  assert.equal(told.length, 2);
  assert.match(told[0]!, /^jit\(twice\): recording again for \[float32\[2\]\] \(2 of at most 2\)/);
  assert.match(told[1]!, /for \[float32\[3\]\] \(in place of \[float32\[2\]\]\)/);
  tf.tidy(() => expectSame(recorded(tf.tensor1d([4], "int32")).dataSync(), [8]));
  assert.equal(told.length, 3, "another dtype is another form");
  recorded.dispose();
  recorded.dispose();
  await messageOf(() => call(1), "jit(twice): this recorded function was disposed");
  await messageOf(() => jit((x: tf.Tensor) => x, { maxRecordings: 0 }), "maxRecordings is 0");
});

test("jit() records again under another autocast", () => {
  const [x, weight] = [noise(2, 32), noise(8, 32) as tf.Tensor2D];
  const product = () => linearProduct(x, weight);
  const recorded = jit((y: tf.Tensor) => linearProduct(y, weight), quiet);
  const [full, half] = [take(recorded(x)), autocast(() => take(recorded(x)))];
  expectClose(full, take(product()), 1e-6);
  expectClose(half, autocast(() => take(product())), 1e-6); // biome-ignore format: one line
  assert.ok(full.some((value, i) => value !== half[i]));
  recorded.dispose();
  tf.dispose([x, weight]);
});

const state = { variable: undefined as tf.Variable | undefined, other: undefined as One | undefined };
const REFUSED: { [what: string]: [fn: (x: tf.Tensor) => unknown, says: string] } = {
  "a random draw": [
    (x) => x.add(tf.randomNormal([2])),
    "a random draw (tf.randomNormal) cannot be recorded: every replay would give the same",
  ],
  dropout: [(x) => tf.dropout(x, 0.5), "a random draw (tf.randomUniform)"],
  "TensorFlow's draw": [(x) => tf.multinomial(x as tf.Tensor1D, 3), "a random draw (tf.multinomial)"],
  "Math.random": [(x) => x.mul(Math.random()), "a random number (Math.random)"],
  "a value read": [(x) => x.mul(x.dataSync()[0]!), "reading a tensor's values"],
  "values of one from outside": [(x) => x.mul(state.variable!.dataSync()[0]!), "reading a tensor's values"],
  "an array read": [(x) => (x.arraySync() as number[]).length, "reading a tensor's values"],
  "an async function": [async (x) => x, "the function is async"],
  "a shape from values": [(x) => tf.unique(x as tf.Tensor1D).values, "the op UniqueV2 cannot be recorded: the shape of its result"],
  "an assignment": [(x) => state.variable!.assign(x), "assigning to a variable cannot be recorded"],
  "a new variable": [(x) => tf.variable(x), "making a variable"],
  "a kept tensor": [(x) => tf.keep(x.add(1)).mul(2), "the function keeps 1 tensor besides its result"],
  "another recording": [(x) => state.other!(x), "a recorded function cannot run inside of another"],
  "no tensor": [() => 3, "the function gives back no tensor"],
  "an array of numbers": [() => Float32Array.of(1), "the result is Float32Array; expected tensors"],
  strings: [() => tf.tensor1d(["a"]), "making a tensor of strings"],
  "much from the host": [() => tf.zeros([5, 1 << 20]).add(tf.tensor2d(new Float32Array(5 << 20), [5, 1 << 20])), "more than 16 MB of the host's values"], // biome-ignore format: one line
};

test("jit() refuses by name what a replay could not repeat, and leaves all as it was", async (t) => {
  const x = tf.tensor1d([1, 2]);
  state.variable = tf.variable(x);
  state.other = jit((y: tf.Tensor) => y.add(1), { name: "it" });
  const kernels = nativeKernels().size;
  const leaks: { [what: string]: number } = { "a kept tensor": 1 };
  for (const [what, [fn, says]] of Object.entries(REFUSED))
    await t.test(what, async () => {
      const recorded = jit(fn as One, { name: "it" });
      const before = tf.memory().numTensors;
      await messageOf(() => recorded(x), "jit(it): ", says);
      assert.equal(tf.memory().numTensors - before, leaks[what] ?? 0);
      assert.equal(recorded.recordings().length, 0);
      assert.equal(nativeKernels().size, kernels);
      assert.equal(typeof Math.random(), "number");
    });
  await messageOf(
    () => tf.tidy(() => tf.grad((y: tf.Tensor) => state.other!(y).sum())(x)),
    "gradients do not reach into a recorded function",
  );
  await messageOf(() => jit((() => x) as never)(new Map() as never), "arguments[0] is Map; expected tensors");
  (state.other as ReturnType<typeof jit>).dispose();
  state.variable.dispose();
  x.dispose();
});

test("a recorded cross-entropy is the plain one's, and NaN where a label is out of range", async () => {
  const [logits, hidden, weight] = [noise(3, 5) as tf.Tensor2D, noise(3, 4), noise(5, 4) as tf.Tensor2D];
  const ints = (...labels: number[]) => tf.tensor1d(labels, "int32");
  const plain = [(labels: tf.Tensor1D) => crossEntropy(logits, labels), (labels: tf.Tensor1D) => headCrossEntropy(hidden, weight, labels)];
  for (const fn of plain) {
    const recorded = jit(fn);
    tf.tidy(() => {
      for (const labels of [ints(0, 4, 2), ints(1, -100, 3)]) expectClose(recorded(labels).dataSync(), fn(labels).dataSync(), 1e-6);
      for (const labels of [ints(0, 5, 2), ints(-1, 0, 0)]) assert.ok(Number.isNaN(recorded(labels).dataSync()[0]));
    });
    recorded.dispose();
  }
  tf.dispose([logits, hidden, weight]);
});

test("jit() multiplies with weights in bfloat16, int8 and NF4 as TensorFlow's ops do", () => {
  const [x, wide] = [noise(2, 64), noise(8, 64) as tf.Tensor2D];
  const weights = [frozenWeight(wide), quantise(wide, "int8"), quantise(wide, "nf4")];
  for (const weight of weights) {
    const gradient = (y: tf.Tensor) => tf.valueAndGrad((z: tf.Tensor) => linearProduct(z, weight).sum())(y);
    const recorded = jit(gradient);
    tf.tidy(() => {
      const [got, want] = [recorded(x), withoutNative(() => gradient(x))];
      expectClose(got.value.dataSync(), want.value.dataSync(), 1e-5, weight.dtype);
      expectClose(got.grad.dataSync(), want.grad.dataSync(), 1e-6, weight.dtype);
    });
    recorded.dispose();
  }
  tf.dispose([x, wide, ...weights]);
});

test("while jit() records, native kernels are off; before and after they are on", () => {
  const seen: boolean[] = [];
  const recorded = jit((x: tf.Tensor) => {
    seen.push(hasNative("activation"));
    return gelu(x);
  });
  assert.ok(hasNative("activation"));
  tf.tidy(() => recorded(noise(5)));
  assert.deepEqual(seen, [false]);
  assert.ok(hasNative("activation"));
  recorded.dispose();
});

test("jit() on another backend says what to do", () => {
  const program = `
    const { engine, tf } = require("vitrine/engine"), { jit } = require("vitrine/engine/jit");
    engine().then(() => jit((x) => x.add(1), { name: "f" })(tf.ones([2]))).catch((error) => console.log(error.message));`;
  const { stdout } = spawnSync(process.execPath, ["-e", program], {
    cwd: join(__dirname, "..", ".."),
    env: { ...process.env, VITRINE_BACKEND: "cpu" },
    encoding: "utf8",
  });
  assert.match(stdout, /jit\(f\): recording needs the TensorFlow backend .* cpu is in use; call the plain function/);
});
