import assert from "node:assert/strict";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { tf } from "vitrine/engine";
import type { Clip } from "vitrine/models";
import { type LoraOptions, withLora } from "vitrine/nn/lora";
import { loadAdapter } from "vitrine/nn/peft";
import { type Row, train, type TrainOptions } from "vitrine/train/loop";
import { inputs, type Inputs, loadClip, logits, lossOf, oracle } from "../support/clip";
import { expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";

let clip: Clip;
let x: Inputs;
before(async () => {
  clip = await loadClip();
  x = inputs();
});

/** The three pairs of the oracle, again and again; each batch is a copy, since train() disposes what it is given. */
function* sameBatch(): Generator<Inputs> {
  for (;;) yield { pixels: x.pixels.clone(), ids: x.ids.clone(), mask: x.mask.clone() };
}

const LORA: LoraOptions = { targetModules: ["q_proj", "v_proj"], r: 4, loraAlpha: 8, loraDropout: 0.1, seed: 2 };

/** A LoRA run; gives its rows and the logits after it. */
async function run(options: Partial<TrainOptions<Inputs>> = {}): Promise<{ rows: Row[]; after: Float32Array }> {
  const { model, adapter } = withLora(clip, LORA);
  adapter.training(true);
  const rows: Row[] = [];
  const loss = (batch: Inputs) => lossOf(model, batch);
  for await (const row of train({ variables: adapter.variables, batches: sameBatch(), loss, steps: 5, learningRate: 1e-2, ...options }))
    rows.push(row);
  adapter.training(false);
  const after = logits(model, x);
  adapter.dispose();
  return { rows, after };
}

/** A line y = w·t + b, for what needs no model. */
function line() {
  const variables = [tf.variable(tf.scalar(0.5)), tf.variable(tf.scalar(0))] as tf.Variable[];
  const loss = (t: tf.Tensor) => t.mul(variables[0]).add(variables[1]).sub(t.mul(3).add(1)).square().mean() as tf.Scalar;
  const draw = random(1);
  const points = Array.from({ length: 24 }, () => 2 * draw() - 1);
  const batches = function* (size: number) {
    for (;;) for (let i = 0; i < points.length; i += size) yield tf.tensor1d(points.slice(i, i + size));
  };
  const values = () => variables.flatMap((v) => Array.from(v.dataSync()));
  return { variables, loss, batches, values, dispose: () => tf.dispose(variables) };
}

async function collect(rows: AsyncIterable<Row>): Promise<Row[]> {
  const all: Row[] = [];
  for await (const row of rows) all.push(row);
  return all;
}

test("train() learns: the loss of the same batch falls, and rows say what was done", async () => {
  const { rows } = await run({ steps: 8, schedule: "cosine", warmupSteps: 2 });
  assert.deepEqual(
    rows.map((row) => row.step),
    [1, 2, 3, 4, 5, 6, 7, 8],
  );
  assert.ok(rows[7].loss < 0.7 * rows[0].loss, `${rows[0].loss} to ${rows[7].loss}`);
  expectClose(
    rows.slice(0, 3).map((row) => row.learningRate),
    [0, 0.005, 0.01],
    1e-12,
  );
  for (const row of rows) {
    assert.ok(row.gradNorm > 0 && row.seconds > 0);
    assert.deepEqual(Object.keys(row), ["step", "loss", "learningRate", "gradNorm", "seconds"]);
  }
});

test("train() gives the losses of PEFT's ten steps", async () => {
  const wanted = oracle().cases.lora.find((one: { name: string }) => one.name === "lora");
  const { model, adapter } = loadAdapter(clip, `${oracle().folder}/${wanted.adapter_init}`);
  const { lr, betas, eps, weight_decay: weightDecay, max_grad_norm: maxGradNorm } = wanted.optimizer;
  const rows = await collect(
    train({
      variables: adapter.variables,
      batches: sameBatch(),
      loss: (batch) => lossOf(model, batch),
      steps: 10,
      learningRate: lr,
      schedule: "cosine",
      warmupSteps: 2,
      betas,
      eps,
      weightDecay,
      maxGradNorm,
    }),
  );
  expectClose(
    rows.map((row) => row.loss),
    wanted.losses,
    1e-3,
  );
  expectClose(
    rows.map((row) => row.gradNorm),
    wanted.grad_norms_before_clip,
    1e-2,
  );
  expectClose(
    rows.map((row) => row.learningRate),
    wanted.learning_rates,
    1e-12,
  );
  adapter.dispose();
});

test("train() gives identical rows and weights twice from one seed, dropout included", async () => {
  const [first, second] = [await run(), await run()];
  const numbers = ({ rows }: { rows: Row[] }) => rows.map(({ seconds: _, ...row }) => row);
  assert.deepEqual(numbers(first), numbers(second));
  expectSame(first.after, second.after);
});

test("train() over accumulated batches takes the step of one batch as large as all", async () => {
  const results = [];
  for (const [size, gradientAccumulationSteps] of [
    [24, 1],
    [12, 2],
    [6, 4],
    [1, 24],
  ]) {
    const { variables, loss, batches, values, dispose } = line();
    const rows = await collect(train({ variables, loss, batches: batches(size), gradientAccumulationSteps, steps: 10, learningRate: 0.1 }));
    results.push([...rows.flatMap((row) => [row.loss, row.gradNorm]), ...values()]);
    dispose();
  }
  for (const other of results.slice(1)) expectClose(other, results[0], 1e-5);
});

test("train() clips the gradients, and says their length before", async () => {
  const { variables, loss, batches, dispose } = line();
  const [row] = await collect(train({ variables, loss, batches: batches(24), steps: 1, learningRate: 0, maxGradNorm: 1e-3 }));
  assert.ok(row.gradNorm > 0.1);
  dispose();
});

test("train() stops at the signal, ends normally and keeps what was learned", async () => {
  const { variables, loss, batches, values, dispose } = line();
  const controller = new AbortController();
  const rows: Row[] = [];
  let learned: number[] = [];
  for await (const row of train({ variables, loss, batches: batches(24), steps: 1000, learningRate: 0.1, signal: controller.signal })) {
    rows.push(row);
    if (row.step === 3) {
      learned = values();
      controller.abort();
    }
  }
  assert.equal(rows.length, 3);
  assert.deepEqual(values(), learned);
  assert.notDeepEqual(learned, [0.5, 0]);
  assert.deepEqual(
    await collect(train({ variables, loss, batches: batches(24), steps: 5, learningRate: 0.1, signal: controller.signal })),
    [],
    "an aborted signal: no step",
  );
  dispose();
});

test("train() lets timers in at every step, and an abort in the middle of an accumulated step drops that step", async () => {
  const { variables, loss, batches, values, dispose } = line();
  const controller = new AbortController();
  let seen = 0;
  const counted = function* () {
    for (const batch of batches(1)) {
      seen++;
      if (seen === 30) setImmediate(() => controller.abort());
      yield batch;
    }
  };
  await keepsTensorCount(async () => {
    const rows = await collect(
      train({ variables, loss, batches: counted(), gradientAccumulationSteps: 24, steps: 5, learningRate: 0.1, signal: controller.signal }),
    );
    assert.equal(rows.length, 1);
    assert.ok(seen <= 33, `stopped after batch ${seen}`);
  });
  assert.notDeepEqual(values(), [0.5, 0]);
  dispose();
});

test("train() with a loss that is no number throws, says what to try and updates nothing", async () => {
  const { variables, loss, batches, values, dispose } = line();
  const explode = (t: tf.Tensor) => loss(t).mul(Number.POSITIVE_INFINITY) as tf.Scalar;
  await keepsTensorCount(async () => {
    await messageOf(
      () => collect(train({ variables, loss: explode, batches: batches(24), steps: 3, learningRate: 0.1 })),
      /step 1 has loss (Infinity|NaN) and gradient norm (Infinity|NaN); nothing was updated\. Try a lower learningRate \(0\.1\) or a warm-up/,
    );
  });
  assert.deepEqual(values(), [0.5, 0]);
  dispose();
});

test("train() says when the batches end too soon, and which variables the loss does not reach", async () => {
  const { variables, loss, batches, dispose } = line();
  await keepsTensorCount(() =>
    messageOf(
      () => collect(train({ variables, loss, batches: [tf.tensor1d([1]), tf.tensor1d([2])], steps: 5, learningRate: 0.1 })),
      "the batches ended before step 3; give more epochs or fewer steps",
    ),
  );
  await keepsTensorCount(() =>
    messageOf(
      () =>
        collect(
          train({
            variables,
            loss,
            batches: [tf.tensor1d([1]), tf.tensor1d([2]), tf.tensor1d([3])],
            gradientAccumulationSteps: 2,
            steps: 5,
            learningRate: 0.1,
          }),
        ),
      "the batches ended before step 2",
    ),
  );
  const idle = tf.variable(tf.zeros([2, 3]));
  await keepsTensorCount(() =>
    messageOf(
      () => collect(train({ variables: [...variables, idle] as tf.Variable[], loss, batches: batches(24), steps: 1, learningRate: 0.1 })),
      "the loss does not reach 1 of 3 variables (shapes [2,3])",
    ),
  );
  idle.dispose();
  dispose();
});

test("train() closes the source of its batches and frees its own tensors, also when the reader leaves", async () => {
  const { variables, loss, batches, dispose } = line();
  let closed = false;
  const watched = function* () {
    try {
      yield* batches(24);
    } finally {
      closed = true;
    }
  };
  await keepsTensorCount(async () => {
    for await (const row of train({ variables, loss, batches: watched(), steps: 100, learningRate: 0.1 })) if (row.step === 2) break;
  });
  assert.ok(closed);
  dispose();
});

test("train() holds as many tensors at step 50 as at step 2", async () => {
  const { model, adapter } = withLora(clip, LORA);
  const counts: number[] = [];
  await keepsTensorCount(async () => {
    const rows = train({
      variables: adapter.variables,
      batches: sameBatch(),
      loss: (batch) => lossOf(model, batch),
      steps: 50,
      learningRate: 1e-3,
      gradientAccumulationSteps: 1,
    });
    for await (const _ of rows) counts.push(tf.memory().numTensors);
  });
  assert.equal(counts.length, 50);
  assert.deepEqual([...new Set(counts)].length, 1, `counts ${counts}`);
  adapter.dispose();
});

test("train() lists every option that makes no sense, with the nearest known name", async () => {
  const bad = {
    variables: [],
    steps: 1.5,
    learningRate: -1,
    gradientAccumulationSteps: 0,
    maxGradNorm: 0,
    warmupStep: 3,
    batches: [],
    loss: () => tf.scalar(0),
  };
  await messageOf(
    () => collect(train(bad as never)),
    'unknown option "warmupStep", did you mean "warmupSteps"?',
    "variables is empty",
    "steps is 1.5, expected a whole number of at least 1",
    "learningRate is -1",
    "gradientAccumulationSteps is 0",
    "maxGradNorm is 0, expected a number above 0 (Infinity: no clipping)",
  );
});

test("train() in bfloat16 arithmetic stays near float32, and the weights float32", async () => {
  const [full, narrow] = [await run({ steps: 3 }), await run({ steps: 3, bf16: true })];
  expectClose(
    narrow.rows.map((row) => row.loss),
    full.rows.map((row) => row.loss),
    0.1,
  );
  assert.notDeepEqual(narrow.after, full.after);
});
