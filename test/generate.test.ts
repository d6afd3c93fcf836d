/** Answers token by token, against transformers' generate: the oracle's greedy run, and test/oracle/generation/make.py. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { withoutNative } from "vitrine/engine/native";
import { readJson } from "vitrine/files/json";
import { collect, type GenerationOptions, generate } from "vitrine/generate";
import { load } from "vitrine/models";
import type { LanguageModel, VisionLanguageModel } from "vitrine/models/loaded";
import { loadTokenizer } from "vitrine/text/tokenizer";
import { Checks, FLOAT } from "./parity/check";
import { expectClose, keepsTensorCount, messageOf } from "./support/close";
import { embed, openTower, picturePrompt, type Tower } from "./support/talk";

let tower: Tower;
before(async () => {
  await engine();
  tower = await openTower();
});

type Case = { family: string; prompt: number[]; ends: number[]; options: GenerationOptions; answers: { ids: number[]; score?: number }[] };
const { generation } = readJson(join(__dirname, "oracle", "generation", "cases.json")) as unknown as { generation: Case[] };

/** A prompt of more tokens than a part has. */
const LONG = generation.find(({ prompt }) => prompt.length > 64)!.prompt;

/** A model that also keeps every row of scores that it gave. */
function watched(model: LanguageModel): { model: LanguageModel; rows: Float32Array[] } {
  const rows: Float32Array[] = [];
  const logits = (hidden: tf.Tensor3D) => {
    const scores = model.logits(hidden);
    rows.push(Float32Array.from(scores.dataSync()));
    return scores;
  };
  return { model: { ...model, logits }, rows };
}

test("greedy answers are the oracle's, with its scores at every step", async () => {
  const [{ new_ids: want, step_logits, text }] = tower.oracle.cases.generation;
  const { embeddings, ids } = await picturePrompt(tower);
  const tokenizer = await loadTokenizer(join(tower.oracle.folder, "model"));
  const { model, rows } = watched(tower.language);
  const answer = await collect(generate(model, { embeddings, ids, tokenizer, maxNewTokens: want.length, ignoreEos: true, logprobs: 3 }));
  assert.deepEqual(answer.ids, want);
  assert.equal(answer.text, tokenizer.decode(want));
  assert.equal(answer.finishReason, "length");
  const checks = new Checks("internvl_hf");
  const all = Float32Array.from(rows.flatMap((row) => Array.from(row)));
  checks.close("step logits", all, tower.oracle.array(step_logits).values, FLOAT);
  assert.deepEqual(
    checks.rows.filter((row) => !row.ok),
    [],
  );
  for (const [i, { id, logprob, logprobs }] of answer.tokens.entries()) {
    const lse = Math.log(rows[i].reduce((sum, x) => sum + Math.exp(x), 0));
    expectClose([logprob], [rows[i][id] - lse], 1e-5);
    assert.equal(logprobs!.length, 3);
    assert.deepEqual([logprobs![0].id, logprobs![0].logprob], [id, logprob]);
  }
  assert.ok(text.length > 0);
  embeddings.dispose();
});

/** The same model, whose steps run as formulas: the switch holds for synchronous code alone. */
function withoutKernels(model: LanguageModel): LanguageModel {
  const off =
    <A extends unknown[], T>(compute: (...args: A) => T) =>
    (...args: A) =>
      withoutNative(() => compute(...args));
  const { encoder } = model;
  return {
    ...model,
    embed: off(model.embed),
    forward: off(model.forward),
    logits: off(model.logits),
    encoder: encoder && { ...encoder, encode: off(encoder.encode) },
  };
}

/** Every case of these, with and without kernels. */
async function checkAnswers(language: LanguageModel, cases: Case[]): Promise<void> {
  assert.ok(cases.length > 5);
  for (const { prompt, ends, options, answers } of cases) {
    const embeddings = embed({ language }, prompt);
    const what = `prompt of ${prompt.length}, ${ends.length} ends, ${JSON.stringify(options)}`;
    await keepsTensorCount(async () => {
      const asked = { ...options, embeddings, ids: prompt, maxNewTokens: 12, ignoreEos: true, stopTokenIds: ends };
      const answer = await collect(generate(language, asked));
      assert.deepEqual(answer.ids, answers[0].ids, what);
      assert.equal(answer.finishReason, ends.includes(answer.ids.at(-1)!) ? "stop" : "length");
      if (!answer.beams) return;
      assert.deepEqual(
        answer.beams.map(({ ids }) => ids),
        answers.map(({ ids }) => ids),
        what,
      );
      // Sums of 12 log-probabilities, each within 1e-4 of PyTorch's; a negative power of the length multiplies them.
      const tolerance = 2e-4 * Math.max(1, 12 ** -(options.lengthPenalty ?? 1) * 12);
      expectClose(
        answer.beams.map(({ score }) => score),
        answers.map(({ score }) => score!),
        tolerance,
        what,
      );
    });
    embeddings.dispose();
  }
}

for (const family of ["internvl_hf", "blip2_opt", "blip2_t5"])
  test(`answers of transformers' generate for ${family}, beam searches too, with kernels and without`, async () => {
    const model = await load<VisionLanguageModel>(join(__dirname, "oracle", family, "model"));
    const cases = generation.filter((one) => one.family === family);
    await checkAnswers(model.language, cases);
    const short = cases.filter(({ prompt }) => prompt.length < 8);
    await checkAnswers(withoutKernels(model.language), short);
    model.dispose();
  });

const run = async (options: Parameters<typeof generate>[1]) => collect(generate(tower.language, options));

test("drawn answers are the same with the same seed, and greedy ones when nothing else can be drawn", async () => {
  const embeddings = embed(tower, generation[0].prompt);
  const some = async (options: GenerationOptions) =>
    (await run({ embeddings, maxNewTokens: 10, doSample: true, ignoreEos: true, ...options })).ids;
  const greedy = await some({ doSample: false });
  assert.deepEqual(await some({ topK: 1 }), greedy);
  assert.deepEqual(await some({ topK: 0, topP: 1e-6 }), greedy);
  assert.deepEqual(await some({ topK: 0, minP: 1 }), greedy);
  assert.deepEqual(await some({ temperature: 0 }), greedy);
  assert.deepEqual(await some({ seed: 5, topK: 0 }), await some({ seed: 5, topK: 0 }));
  assert.notDeepEqual(await some({ seed: 5, topK: 0 }), await some({ seed: 6, topK: 0 }));
  const unnamed = await run({ embeddings, maxNewTokens: 5, doSample: true });
  assert.deepEqual((await run({ embeddings, maxNewTokens: 5, doSample: true, seed: unnamed.seed })).ids, unnamed.ids);
  embeddings.dispose();
});

test("end tokens, stop words and bad words do what they say", async () => {
  const tokenizer = await loadTokenizer(join(tower.oracle.folder, "model"));
  const embeddings = embed(tower, generation[0].prompt);
  const plain = await run({ embeddings, tokenizer, maxNewTokens: 12, ignoreEos: true });
  const end = plain.ids[4];
  const first = plain.ids.indexOf(end);
  const ended = await run({ embeddings, tokenizer, maxNewTokens: 12, stopTokenIds: [end] });
  assert.deepEqual([ended.ids, ended.finishReason], [plain.ids.slice(0, first + 1), "stop"]);
  assert.equal(ended.text, tokenizer.decode(plain.ids.slice(0, first)), "the end is not part of the text");
  const word = plain.text.slice(3, 6);
  const at = plain.text.indexOf(word);
  const cut = await run({ embeddings, tokenizer, maxNewTokens: 12, ignoreEos: true, stopWords: [word] });
  assert.deepEqual([cut.text, cut.finishReason], [plain.text.slice(0, at), "stop"]);
  assert.equal(cut.tokens.map(({ text }) => text).join(""), cut.text);
  const later = await run({ embeddings, tokenizer, maxNewTokens: 12, ignoreEos: true, stopWords: [word], minNewTokens: 12 });
  assert.equal(later.text, plain.text);
  const own = (id: number) => String(tokenizer.encode(tokenizer.decode([id]), { addSpecialTokens: false })) === String(id);
  const badId = plain.ids.find(own)!;
  const banned = tokenizer.decode([badId]);
  const without = await run({ embeddings, tokenizer, maxNewTokens: 12, ignoreEos: true, badWords: [banned] });
  assert.ok(badId !== undefined && !without.ids.includes(badId) && without.ids.length === 12);
  const beams = await run({ embeddings, tokenizer, maxNewTokens: 12, ignoreEos: true, numBeams: 3 });
  const stopped = await run({ embeddings, tokenizer, maxNewTokens: 12, ignoreEos: true, numBeams: 3, stopWords: [beams.text.slice(2, 5)] });
  assert.ok(!stopped.text.includes(beams.text.slice(2, 5)));
  embeddings.dispose();
});

test("a long prompt in parts, a cache of the caller, a small room: the answer stays", async () => {
  const prompt = LONG;
  const embeddings = embed(tower, prompt);
  const want = await run({ embeddings, maxNewTokens: 10, ignoreEos: true });
  // A model that claims to be large is given its prompt 64 tokens at a time.
  const large = { ...tower.language, hiddenSize: 8192, layers: 40 };
  tower.given.length = 0;
  const parts = await collect(generate(large, { embeddings, maxNewTokens: 10, ignoreEos: true }));
  assert.deepEqual(tower.given.slice(0, 3), [64, prompt.length - 64, 1]);
  assert.deepEqual(parts.ids, want.ids);
  const cache = tower.language.makeCache(4);
  await keepsTensorCount(async () => {
    const first = embed(tower, prompt.slice(0, 30));
    cache.reserve(30);
    tf.dispose(tower.language.forward({ embeddings: first, cache }));
    const rest = embed(tower, prompt.slice(30));
    const answer = await run({ embeddings: rest, cache, maxNewTokens: 10, ignoreEos: true });
    assert.deepEqual(answer.ids, want.ids);
    assert.equal(cache.length, prompt.length + 9);
    cache.truncate(30);
    const again = await run({ embeddings: rest, cache, maxNewTokens: 10, ignoreEos: true });
    assert.deepEqual(again.ids, want.ids, "after the cache was cut back");
    cache.truncate(30);
    const beams = await run({ embeddings: rest, cache, maxNewTokens: 10, ignoreEos: true, numBeams: 3 });
    assert.equal(cache.length, prompt.length, "a beam search leaves the prompt");
    assert.equal(beams.beams!.length, 3);
    cache.truncate(30);
    assert.deepEqual((await run({ embeddings: rest, cache, maxNewTokens: 10, ignoreEos: true })).ids, want.ids, "after a beam search");
    cache.dispose();
    tf.dispose([first, rest]);
  });
  embeddings.dispose();
});

test("a signal ends an answer between two tokens and keeps what was said", async () => {
  const embeddings = embed(tower, generation[0].prompt);
  const want = await run({ embeddings, maxNewTokens: 30, ignoreEos: true });
  await keepsTensorCount(async () => {
    const stop = new AbortController();
    const said: number[] = [];
    const answer = generate(tower.language, { embeddings, maxNewTokens: 30, ignoreEos: true, signal: stop.signal });
    for (;;) {
      const { value, done } = await answer.next();
      if (done) {
        assert.equal(value.finishReason, "abort");
        assert.deepEqual(value.ids, said);
        break;
      }
      if (said.push(value.id) === 4) stop.abort();
    }
    assert.deepEqual(said, want.ids.slice(0, 4));
    const never = await run({ embeddings, signal: AbortSignal.abort() });
    assert.deepEqual([never.ids, never.finishReason], [[], "abort"]);
    const late = setTimeout(() => stop.abort(), 0);
    const beams = await run({ embeddings, numBeams: 3, maxNewTokens: 2000, ignoreEos: true, signal: AbortSignal.any([stop.signal]) });
    clearTimeout(late);
    assert.equal(beams.finishReason, "abort");
    for await (const _ of generate(tower.language, { embeddings, maxNewTokens: 30 })) break; // a reader who leaves
  });
  embeddings.dispose();
});

test("answers that are made at the same time do not disturb each other", async () => {
  const prompts = [generation[0].prompt, LONG, [1, 2, 3]];
  const inputs = prompts.map((prompt) => embed(tower, prompt));
  const alone: number[][] = [];
  for (const embeddings of inputs) alone.push((await run({ embeddings, maxNewTokens: 8, ignoreEos: true })).ids);
  const together = await Promise.all(inputs.map((embeddings) => run({ embeddings, maxNewTokens: 8, ignoreEos: true })));
  assert.deepEqual(
    together.map(({ ids }) => ids),
    alone,
  );
  tf.dispose(inputs);
});

test("an encoder reads the prompt once, and the decoder begins with its start token", async () => {
  const embeddings = embed(tower, [5, 6, 7]);
  let encodings = 0;
  const { language } = tower;
  // What the encoder has read is added to each token: a decoder that listens to it in the simplest way.
  const model: LanguageModel = {
    ...language,
    contextLength: Number.POSITIVE_INFINITY,
    encoder: {
      startToken: 3,
      encode: ({ embeddings }) => {
        encodings++;
        return tf.mul(embeddings, 2);
      },
    },
    forward: ({ encoded, ...inputs }) => {
      assert.equal(encoded!.states.shape[0], inputs.embeddings.shape[0], "as many encodings as sequences");
      return language.forward({ ...inputs, embeddings: inputs.embeddings.add(encoded!.states.mean(1, true)) as tf.Tensor3D });
    },
  };
  await keepsTensorCount(async () => {
    const answer = await collect(generate(model, { embeddings, maxNewTokens: 6, ignoreEos: true }));
    assert.equal(encodings, 1);
    const shift = tf.tidy(() => embeddings.mul(2).mean(1, true));
    const ids = [3];
    for (let i = 0; i < 6; i++) {
      const row = tf.tidy(() => {
        const all = embed(tower, ids).add(shift) as tf.Tensor3D;
        return language
          .logits(language.forward({ embeddings: all }))
          .slice([0, ids.length - 1, 0], [1, 1, -1])
          .reshape([-1])
          .argMax()
          .dataSync()[0];
      });
      ids.push(row);
    }
    assert.deepEqual(answer.ids, ids.slice(1));
    const beams = await collect(generate(model, { embeddings, maxNewTokens: 6, ignoreEos: true, numBeams: 3 }));
    assert.equal(beams.beams!.length, 3);
    shift.dispose();
  });
  embeddings.dispose();
});

test("a prompt that does not fit, or options that need a tokenizer, are errors before anything is computed", async () => {
  const embeddings = embed(tower, [1, 2, 3]);
  await messageOf(() => generate(tower.language, { embeddings, stopWords: ["x"] }), "stopWords need a tokenizer");
  await messageOf(
    () => generate({ ...tower.language, contextLength: 3 }, { embeddings }),
    "the prompt has 3 tokens; the model's context has 3",
  );
  await messageOf(() => generate(tower.language, { embeddings: tf.zeros([2, 3, 32]) }), "are 2 prompts");
  const answer = await collect(generate({ ...tower.language, contextLength: 7 }, { embeddings, ignoreEos: true }));
  assert.deepEqual([answer.ids.length, answer.finishReason], [4, "length"]);
  embeddings.dispose();
});
