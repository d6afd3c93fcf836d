/** What options do to scores, against transformers' own logits processors: test/oracle/generation/make.py. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { random } from "vitrine/data/random";
import { readJson } from "vitrine/files/json";
import { chooseBest, draw, highest, logSumExp } from "vitrine/generate/choose";
import { checkOptions, type GenerationOptions } from "vitrine/generate/options";
import { keepTopP, kthLargest, makeRules, penaliseRepetition } from "vitrine/generate/scores";
import { messageOf } from "../support/close";

type Row = (number | null)[];
const { processors } = readJson(join(__dirname, "..", "oracle", "generation", "cases.json")) as unknown as {
  processors: {
    scores: Row[];
    ids: number[][];
    eos: number[];
    promptLength: number;
    badWords: number[][];
    cases: { [name: string]: Row[] };
  };
};

/** An option that changes nothing, for those that the case does not name. */
const PLAIN: GenerationOptions = { doSample: false, topK: 0, temperature: 1 };
const OPTIONS: { [name: string]: GenerationOptions } = {
  badWords: {},
  badTokenIds: { badTokenIds: [8, 9] },
  all: {
    ...{ doSample: true, repetitionPenalty: 1.3, minNewTokens: 4, badTokenIds: [8, 9] },
    ...{ temperature: 0.6, topK: 20, topP: 0.9, minP: 0.02 },
  },
};
const optionsOf = (name: string): GenerationOptions => {
  const [option, value] = name.split(" ");
  if (OPTIONS[name]) return OPTIONS[name];
  return { [option]: Number(value), doSample: /^(temperature|top|min[P])/.test(option) };
};

for (const [name, want] of Object.entries(processors.cases))
  test(`${name} gives the scores of transformers' processors`, () => {
    const vocabSize = want[0].length;
    const settings = checkOptions({ ...PLAIN, ...optionsOf(name) }, vocabSize);
    const badWords = name === "all" || name === "badWords" ? processors.badWords : [];
    const rules = makeRules(settings, { ends: new Set(processors.eos), badWords });
    let out = 0;
    for (const [i, row] of processors.scores.slice(0, want.length).entries()) {
      const scores = Float32Array.from(row as number[]);
      rules.apply(scores, processors.ids[i], processors.ids[i].length - processors.promptLength);
      for (const [id, expected] of want[i].entries()) {
        if (expected === null) out++;
        const got = scores[id];
        const same =
          expected === null ? got === Number.NEGATIVE_INFINITY : Math.abs(got - expected) <= 2e-6 * Math.max(1, Math.abs(expected));
        assert.ok(same, `row ${i}, token ${id}: ${got}, expected ${expected}`);
      }
    }
    if (/^(bad|top|minP|minNewTokens 4|all)/.test(name)) assert.ok(out > 0, "nothing was left out");
  });

test("penaliseRepetition() leaves out negative ids, which stand for pictures, and ids beyond the scores", () => {
  const [scores, marks] = [
    [2, -2, 3, -1],
    [0, 0, 0, 0],
  ]; // lists, which would keep a number at a place of any name
  penaliseRepetition(scores as unknown as Float32Array, [-200, 1, -300, 2, 2, -1, 9], 2, marks as unknown as Uint32Array, 1);
  assert.deepEqual(Object.entries(scores), Object.entries([2, -4, 1.5, -1]));
  assert.deepEqual(Object.entries(marks), Object.entries([0, 1, 1, 0]));
});

test("kthLargest() and highest() agree with sorting", () => {
  const next = random(3);
  const values = Float32Array.from({ length: 500 }, () => Math.round(40 * next()) / 4);
  const sorted = Array.from(values).sort((a, b) => b - a);
  for (const k of [1, 2, 7, 100, 499, 500]) {
    assert.equal(kthLargest(values, k), sorted[k - 1]);
    const best = highest(values, k);
    assert.deepEqual(
      best.map((one) => one.logprob),
      sorted.slice(0, k),
    );
    assert.equal(new Set(best.map((one) => one.id)).size, k);
    assert.ok(best.every((one) => values[one.id] === one.logprob));
  }
  assert.equal(highest(values, 1)[0].id, chooseBest(values));
});

test("keepTopP() sorts only what can stay, and keeps what sorting everything would", () => {
  const next = random(4);
  for (let round = 0; round < 50; round++) {
    const scores = Float32Array.from({ length: 300 }, () => 12 * next());
    const p = 0.05 + 0.9 * next();
    const total = Math.exp(logSumExp(scores));
    const order = Array.from(scores.keys()).sort((a, b) => scores[a] - scores[b]);
    let sum = 0;
    const kept = order.filter((id, i) => {
      sum += Math.exp(scores[id]) / total;
      return !(sum <= 1 - p) || i === order.length - 1;
    });
    keepTopP(scores, p);
    assert.deepEqual(
      Array.from(scores.keys()).filter((id) => scores[id] > Number.NEGATIVE_INFINITY),
      kept.sort((a, b) => a - b),
    );
  }
});

test("draw() draws by the probabilities, the same with the same seed", () => {
  const scores = Float32Array.from([Math.log(0.5), Number.NEGATIVE_INFINITY, Math.log(0.3), Math.log(0.2)]);
  const [counts, next] = [[0, 0, 0, 0], random(7)];
  for (let i = 0; i < 20_000; i++) counts[draw(scores, next)]++;
  assert.equal(counts[1], 0);
  // Four standard deviations of a share of 20,000 draws: at most 0.0142.
  for (const [id, share] of [
    [0, 0.5],
    [2, 0.3],
    [3, 0.2],
  ])
    assert.ok(Math.abs(counts[id] / 20_000 - share) < 0.0142, `${counts}`);
  const some = (seed: number) => {
    const next = random(seed);
    return Array.from({ length: 20 }, () => draw(scores, next));
  };
  assert.deepEqual(some(1), some(1));
  assert.notDeepEqual(some(1), some(2));
});

test("scores without a token to choose, or that are no numbers, are errors", async () => {
  await messageOf(() => chooseBest(new Float32Array(4).fill(Number.NEGATIVE_INFINITY)), "no token is left to choose");
  await messageOf(() => logSumExp(Float32Array.from([1, Number.NaN])), "no finite numbers");
  await messageOf(() => logSumExp(Float32Array.from([1, Number.POSITIVE_INFINITY])), "no finite numbers");
});

test("options outside their limits are errors that name the limits, all at once", async () => {
  const wrong = (options: object) => messageOf(() => checkOptions(options as GenerationOptions, 100));
  const stop = Array.from({ length: 1_000_000 }, () => "x");
  const message = await wrong({ temperature: Number.NaN, maxNewTokens: 1e9, stopWords: stop, topP: 0, seed: -1, numBeams: 2.5 });
  for (const part of [
    "temperature is NaN, expected a number from 0 to 2",
    "maxNewTokens is 1000000000, expected a whole number from 1 to 131072",
    "stopWords is a list of 1000000, expected a list of at most 64 texts of 1 to 256 characters",
    "topP is 0, expected a number above 0, to 1",
    "seed is -1",
    "numBeams is 2.5, expected a whole number from 1 to 16",
  ])
    assert.ok(message.includes(part), `${part} is not in ${message}`);
  assert.match(await wrong({ stopTokenIds: [100] }), /stopTokenIds is \[100\], expected a list of at most 4096 ids from 0 to 99/);
  assert.match(await wrong({ max_new_tokens: 3 }), /max_new_tokens is no option/);
  assert.match(await wrong({ maxNewToken: 3 }), /maxNewToken is no option; did you mean maxNewTokens\?/);
  assert.match(await wrong({ minNewTokens: 9, maxNewTokens: 4 }), /minNewTokens is 9, more than maxNewTokens, 4/);
  assert.match(await wrong({ numBeams: 2, doSample: true }), /a beam search draws nothing/);
  assert.match(await wrong({ stopWords: [""] }), /stopWords is \[""\]/);
  assert.equal(checkOptions({ doSample: true, temperature: 0 }, 100).doSample, false);
  assert.equal(checkOptions({ topK: undefined }, 100).topK, 50);
});
