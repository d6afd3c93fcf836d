import assert from "node:assert/strict";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { type AdamWOptions, adamW, clipGradients, globalNorm } from "vitrine/train/adamw";
import { schedule, type ScheduleName } from "vitrine/train/schedule";
import { expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";
import { noReference, reference } from "../support/reference";

before(() => engine().then(() => {}));

const draw = random(11);
const numbers = (count: number, spread = 1) => Array.from({ length: count }, () => Math.fround(spread * (2 * draw() - 1)));
const COUNT = 6;
const LR = 0.05;
const start = numbers(COUNT);
const gradients = Array.from({ length: 5 }, (_, i) => numbers(COUNT, 10 ** (i - 2)));

/** Parameters after each step, by our optimiser. */
function ours(options: AdamWOptions, maxNorm = 0): number[][] {
  const variable = tf.variable(tf.tensor1d(start));
  const optimiser = adamW([variable], options);
  const steps = gradients.map((values) => {
    const gradient = tf.tensor1d(values);
    const list = maxNorm ? clipGradients([gradient], globalNorm([gradient]).dataSync()[0], maxNorm) : [gradient];
    optimiser.step(list, LR);
    tf.dispose(list);
    return Array.from(variable.dataSync());
  });
  optimiser.dispose();
  variable.dispose();
  return steps;
}

/** The same in double precision, written from the paper (Loshchilov & Hutter 2019, algorithm 2). */
function byHand({ betas: [b1, b2], eps, weightDecay }: { betas: [number, number]; eps: number; weightDecay: number }): number[][] {
  const theta = [...start];
  const [m, v] = [new Array(COUNT).fill(0), new Array(COUNT).fill(0)];
  return gradients.map((g, t) => {
    for (let i = 0; i < COUNT; i++) {
      m[i] = b1 * m[i] + (1 - b1) * g[i];
      v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2;
      const [mean, spread] = [m[i] / (1 - b1 ** (t + 1)), v[i] / (1 - b2 ** (t + 1))];
      theta[i] -= LR * (mean / (Math.sqrt(spread) + eps) + weightDecay * theta[i]);
    }
    return [...theta];
  });
}

const SETTINGS = [
  { betas: [0.9, 0.999] as [number, number], eps: 1e-8, weightDecay: 0.01 },
  { betas: [0.9, 0.98] as [number, number], eps: 1e-6, weightDecay: 0.2 },
  { betas: [0, 0.5] as [number, number], eps: 1, weightDecay: 0 },
];

test("adamW() takes the steps of the paper's algorithm", () => {
  for (const options of SETTINGS) expectClose(ours(options).flat(), byHand(options).flat(), 1e-6);
  expectSame(ours({}).flat(), ours(SETTINGS[0]).flat(), "the defaults are torch.optim.AdamW's");
});

test("adamW() takes torch.optim.AdamW's steps, with torch's clipping, and transformers' schedules its rates", { skip: noReference }, () => {
  const schedules: [ScheduleName, number, number][] = [
    ["linear", 20, 3],
    ["cosine", 20, 3],
    ["cosine", 7, 0],
    ["linear", 3, 0],
  ];
  const clips = [0, 1, 1000];
  const optimisers = SETTINGS.flatMap((options) => clips.map((maxNorm) => ({ options, maxNorm })));
  const answers = reference([
    ...optimisers.map(({ options, maxNorm }) => ({ kind: "adamw", start, gradients, lr: LR, maxNorm, ...options })),
    ...schedules.map(([name, steps, warmup]) => ({ kind: "schedule", name, steps, warmup })),
  ]);
  optimisers.forEach(({ options, maxNorm }, i) =>
    expectClose(ours(options, maxNorm).flat(), answers[i].flat(), 1e-6, JSON.stringify({ ...options, maxNorm })),
  );
  schedules.forEach(([name, steps, warmup], i) => {
    const rate = schedule(name, steps, warmup);
    expectClose(
      Array.from({ length: steps }, (_, step) => rate(step)),
      answers[optimisers.length + i],
      1e-12,
      name,
    );
  });
});

test("adamW() leaves the variables of noDecay undecayed", () => {
  const [matrix, bias] = [tf.variable(tf.ones([2, 2])), tf.variable(tf.ones([2]))];
  const optimiser = adamW([matrix, bias] as tf.Variable[], { weightDecay: 0.5, noDecay: (v) => v.rank < 2 });
  tf.tidy(() => optimiser.step([tf.zerosLike(matrix), tf.zerosLike(bias)], 0.1));
  expectClose(matrix.dataSync(), [0.95, 0.95, 0.95, 0.95], 1e-7);
  expectSame(bias.dataSync(), [1, 1]);
  optimiser.dispose();
  tf.dispose([matrix, bias]);
});

test("adamW() at learning rate 0 changes nothing, holds two tensors a variable and frees them", async () => {
  const variables = [tf.variable(tf.tensor1d(numbers(3))), tf.variable(tf.scalar(2))] as tf.Variable[];
  await keepsTensorCount(() => {
    const before = [tf.memory().numTensors, variables.map((v) => Array.from(v.dataSync()))] as const;
    const optimiser = adamW(variables);
    assert.equal(tf.memory().numTensors - before[0], 4);
    tf.tidy(() =>
      optimiser.step(
        variables.map((v) => tf.onesLike(v)),
        0,
      ),
    );
    assert.deepEqual(
      variables.map((v) => Array.from(v.dataSync())),
      before[1],
    );
    assert.equal(tf.memory().numTensors - before[0], 4);
    optimiser.dispose();
  });
  const optimiser = adamW(variables);
  await messageOf(() => optimiser.step([], 1), "adamW: 0 gradients for 2 variables");
  optimiser.dispose();
  tf.dispose(variables);
});

test("clipGradients() scales all gradients by one share, and only when they are too long", async () => {
  const make = () => [tf.tensor1d([3, 0]), tf.tensor2d([[0], [4]])];
  const list = make();
  const norm = globalNorm(list);
  assert.equal(norm.dataSync()[0], 5);
  assert.equal(clipGradients(list, 5, 6), list);
  assert.equal(clipGradients(list, 5, Number.POSITIVE_INFINITY), list);
  const clipped = clipGradients(list, 5, 1);
  // torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm.
  expectClose(
    clipped.flatMap((g) => Array.from(g.dataSync())),
    [3 / 5.000001, 0, 0, 4 / 5.000001],
    1e-7,
  );
  assert.ok(list.every((g) => g.isDisposed));
  tf.dispose([norm, ...clipped]);
  await keepsTensorCount(() => tf.dispose(clipGradients(make(), 5, 1)));
});

test("adamW() leaves alone what shares a variable's memory", async () => {
  await keepsTensorCount(() => {
    const first = tf.tensor1d(start);
    const variable = tf.variable(first);
    const [clone, view] = [variable.clone(), variable.reshape([COUNT, 1])];
    const optimiser = adamW([variable]);
    const gradient = tf.ones([COUNT]);
    for (let i = 0; i < 2; i++) optimiser.step([gradient], LR);
    for (const x of [first, clone, view]) expectSame(x.dataSync(), Float32Array.from(start));
    assert.notDeepEqual(variable.dataSync(), clone.dataSync());
    optimiser.dispose();
    tf.dispose([first, clone, view, gradient, variable]);
  });
});
