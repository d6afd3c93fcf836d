/** BLIP-2's first stage beside the oracle's numbers (test/parity/blip2.ts): its masks, what they let through, and what it says of wrong input. */
import assert from "node:assert/strict";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { maskPlayground } from "vitrine/figures/mask-playground";
import { type Blip2, load } from "vitrine/models";
import { blip2Config, contrastiveLoss, wordLoss } from "vitrine/models/blip2";
import { captionPictures } from "vitrine/models/blip2-caption";
import { qFormer, readPicture } from "vitrine/models/qformer";
import { attentionPlaces, OBJECTIVES } from "vitrine/models/qformer-masks";
import { wordRelevance } from "vitrine/models/qformer-relevance";
import { edit, record } from "vitrine/nn/tap";
import { BLIP2, blip2Inputs, speakingBlip2 } from "../support/blip2";
import { scratch } from "../support/clip";
import { cosine, expectClose, expectSame, farthest, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const rows = (x: tf.Tensor3D, from: number, to: number) => x.slice([0, from, 0], [-1, to - from, -1]).dataSync();

test("attentionPlaces() gives BLIP-2's three masks, of queries and text or either alone", async () => {
  assert.deepEqual(attentionPlaces("contrastive", 1, 2), [
    [1, 0, 0],
    [0, 1, 1],
    [0, 1, 1],
  ]);
  assert.deepEqual(attentionPlaces("matching", 1, 1), [
    [1, 1],
    [1, 1],
  ]);
  assert.deepEqual(attentionPlaces("generation", 2, 2), [
    [1, 1, 0, 0],
    [1, 1, 0, 0],
    [1, 1, 1, 0],
    [1, 1, 1, 1],
  ]);
  for (const objective of OBJECTIVES)
    assert.deepEqual(attentionPlaces(objective, 2, 0), [
      [1, 1],
      [1, 1],
    ]);
  await messageOf(
    () => attentionPlaces("captioning" as never, 1, 1),
    'objective "captioning" is not known; known: contrastive, matching, generation',
  );
  await messageOf(() => attentionPlaces("matching", -1, 2), "-1 queries and 2 text tokens");
});

test("one pass under the contrastive mask is the two passes of queries and of text", async () => {
  const model = await load<Blip2>(BLIP2);
  const { config, params } = model;
  const Q = config.num_query_tokens;
  const { pixels, text } = blip2Inputs(Q);
  const states = model.see(pixels);
  const queries = params.queries.tile([3, 1, 1]) as tf.Tensor3D;
  const run = (inputs: object) => qFormer(params.qformer, config.qformer_config, { mask: "contrastive", ...inputs });
  const both = run({ queries, states, ...text });
  expectClose(rows(both, 0, Q), run({ queries, states }).dataSync(), 2e-6, "queries");
  expectClose(rows(both, Q, both.shape[1]), run(text).dataSync(), 2e-6, "text");
  model.dispose();
});

test("under the generation mask no token knows what comes behind it, and queries know no text; under another they do", async () => {
  const model = await load<Blip2>(BLIP2);
  const { config, params } = model;
  const Q = config.num_query_tokens;
  const { pixels, text } = blip2Inputs(Q);
  const states = model.see(pixels);
  const queries = params.queries.tile([3, 1, 1]) as tf.Tensor3D;
  const T = text.ids.shape[1];
  const last = tf
    .oneHot(tf.tensor1d([T - 1], "int32"), T)
    .cast("int32")
    .reshape([1, T]);
  const changed = text.ids.add(last.mul(5)).mod(tf.scalar(400, "int32")).cast("int32") as tf.Tensor2D;
  for (const mask of OBJECTIVES) {
    const [one, other] = [text.ids, changed].map((ids) => qFormer(params.qformer, config.qformer_config, { queries, states, ids, mask }));
    const leak = farthest(rows(one, 0, Q + T - 1), rows(other, 0, Q + T - 1));
    if (mask === "generation") assert.ok(leak < 1e-6, `${leak}`);
    else assert.ok(leak > 1e-3, `${mask}: ${leak}`);
    if (mask !== "matching")
      expectClose(rows(one, 0, Q), readPicture(params.qformer, config.qformer_config, { queries, states }).dataSync(), 2e-6, mask);
  }
  model.dispose();
});

test("padded text is as if it were not there, and padded states too", async () => {
  const model = await load<Blip2>(BLIP2);
  const { pixels, text } = blip2Inputs(model.config.num_query_tokens);
  const states = model.see(pixels).slice([1, 0, 0], [1, -1, -1]);
  const length = text.padding.slice([1, 0], [1, -1]).sum().dataSync()[0];
  const [ids, padding] = [text.ids, text.padding].map((x) => x.slice([1, 0], [1, -1]) as tf.Tensor2D);
  assert.ok(length < ids.shape[1]);
  const cut = { ids: ids.slice([0, 0], [1, length]) };
  for (const mask of ["matching", "generation"] as const)
    expectClose(
      model.matchingLogits(states, { ids, padding }, { mask }).dataSync(),
      model.matchingLogits(states, cut, { mask }).dataSync(),
      2e-6,
      mask,
    );
  expectClose(model.encodeWords({ ids, padding }).dataSync(), model.encodeWords(cut).dataSync(), 2e-6);
  model.dispose();
});

test("the recorded mask is the one that computes: attention is 0 where it is 0, and editing it changes the result", async () => {
  const model = await load<Blip2>(BLIP2);
  const { pixels, text } = blip2Inputs(model.config.num_query_tokens);
  const states = model.see(pixels);
  for (const mask of OBJECTIVES) {
    const { tap, seen } = record(/mask$|self\.pattern$/);
    const logits = model.matchingLogits(states, { ids: text.ids }, { mask, tap });
    expectSame(logits.dataSync(), model.matchingLogits(states, { ids: text.ids }, { mask }).dataSync(), "looking changes no digit");
    const places = seen.get("qformer.mask");
    const N = places.shape[3]!;
    assert.deepEqual(
      Array.from(places.dataSync()),
      attentionPlaces(mask, model.config.num_query_tokens, N - model.config.num_query_tokens).flat(),
    );
    for (let layer = 0; layer < model.config.qformer_config.num_hidden_layers; layer++) {
      const used = seen.get(`qformer.layers.${layer}.self.pattern`).greater(0).cast("float32");
      expectSame(
        used.dataSync(),
        places.tile([3, model.config.qformer_config.num_attention_heads, 1, 1]).dataSync(),
        `${mask}, layer ${layer}`,
      );
    }
    seen.dispose();
    const open = edit("qformer.mask", (x) => tf.onesLike(x));
    const edited = model.matchingLogits(states, { ids: text.ids }, { mask, tap: open.tap });
    open.check();
    expectClose(edited.dataSync(), model.matchingLogits(states, { ids: text.ids }).dataSync(), 2e-6, mask);
  }
  await keepsTensorCount(() => model.matchingLogits(states, text, { mask: "generation" }).dispose());
  model.dispose();
});

test("bfloat16 and int8 weights leave heads and embeddings near those of float32", async () => {
  const outputs = async (dtype: "float32" | "bfloat16" | "int8") => {
    const model = await load<Blip2>(BLIP2, { dtype });
    const { pixels, text } = blip2Inputs(model.config.num_query_tokens);
    const states = model.see(pixels);
    const out = [model.encodePicture(states), model.encodeWords(text), model.matchingLogits(states, text)].map((x) => x.dataSync());
    model.dispose();
    return out;
  };
  const want = await outputs("float32");
  for (const dtype of ["bfloat16", "int8"] as const)
    (await outputs(dtype)).forEach((got, i) => assert.ok(cosine(got, want[i]) > 0.995, `${dtype} ${i}`));
});

test("losses: symmetric over pictures and texts, and no word where there is padding", () => {
  const cosines = [
    [0.5, 0.1],
    [0.2, 0.4],
  ];
  const row = (a: number, b: number) => Math.log(Math.exp(a / 0.07) + Math.exp(b / 0.07)) - a / 0.07;
  const want = (row(0.5, 0.1) + row(0.4, 0.2) + row(0.5, 0.2) + row(0.4, 0.1)) / 4;
  expectClose(contrastiveLoss(tf.tensor2d(cosines)).dataSync(), [want], 1e-5);
  const logits = tf.tensor3d([
    [
      [0, 1, 2],
      [3, 0, 0],
      [9, 9, -9],
    ],
  ]);
  const ids = tf.tensor2d([[1, 2, 0]], undefined, "int32");
  const say = (line: number[], id: number) => Math.log(line.reduce((sum, x) => sum + Math.exp(x), 0)) - line[id];
  expectClose(wordLoss(logits, { ids }).dataSync(), [(say([0, 1, 2], 2) + say([3, 0, 0], 0)) / 2], 1e-6);
  const padding = tf.tensor2d([[1, 1, 0]], undefined, "int32");
  expectClose(wordLoss(logits, { ids, padding }).dataSync(), [say([0, 1, 2], 2)], 1e-6);
});

test("a checkpoint with a language head speaks: captions, the leak under a wrong mask, and what a word rests on", async () => {
  const model = await speakingBlip2();
  assert.ok(model.speaks);
  const { pixels } = blip2Inputs(model.config.num_query_tokens);
  const states = model.see(pixels);
  const said = await captionPictures(model, states, { maxTokens: 4 });
  assert.equal(said.length, 3);
  const [first] = await captionPictures(model, states.slice([0, 0, 0], [1, -1, -1]), { maxTokens: 4 });
  assert.equal(first, said[0], "a picture alone is told as in a batch");
  await messageOf(() => captionPictures(model, states, { maxTokens: 0 }), "maxTokens is 0, expected a whole number from 1 to");

  const one = states.slice([0, 0, 0], [1, -1, -1]) as tf.Tensor3D;
  const text = model.read(["a red bus"], "[DEC]");
  const same = await maskPlayground(model, one, text, (places) => places);
  assert.equal(same.loss, same.ownLoss);
  const open = await maskPlayground(model, one, text, (places) => places.map((row) => row.map(() => 1)));
  assert.equal(open.ownLoss, same.loss);
  assert.notEqual(open.loss, open.ownLoss);
  const [own, whole] = (open.masks.data as { z: number[][] }[]).map(({ z }) => z.flat().filter((cell) => cell > 0).length);
  assert.ok(whole === (model.config.num_query_tokens + text.ids.shape[1]) ** 2 && own < whole);
  await messageOf(() => maskPlayground(model, one, text, (places) => places.slice(1)), "the mask has");
  await messageOf(() => maskPlayground(model, states, text, (places) => places), "3 pictures and 1 texts; expected one of each");
  model.dispose();
});

test("wordRelevance() is the attention's weight times its gradient, by finite differences, summed where both push the same way", async () => {
  const model = await speakingBlip2();
  const { num_query_tokens: Q, qformer_config: c } = model.config;
  const states = model.see(blip2Inputs(Q).pixels).slice([0, 0, 0], [1, -1, -1]) as tf.Tensor3D;
  const text = model.read(["a red bus"], "[DEC]");
  const ids = text.ids.dataSync();
  const [layer, token, n] = [2, 2, 3];
  const got = await wordRelevance(model, states, text, token, { layer });
  assert.equal(got.length, states.shape[1]);
  const score = (head: number, query: number, step: number) =>
    tf.tidy(() => {
      const bump = tf.buffer([1, c.num_attention_heads, Q, states.shape[1]]);
      bump.set(step, 0, head, query, n);
      const { tap } = edit(`qformer.layers.${layer}.cross.pattern`, (x) => x.add(bump.toTensor()));
      const row = model
        .wordLogits(states, text, { tap })
        .slice([0, token - 1, 0], [1, 1, -1])
        .flatten();
      return row.slice([ids[token]], [1]).sub(row.logSumExp()).dataSync()[0];
    });
  const { tap, seen } = record("cross.pattern");
  model.wordLogits(states, text, { tap });
  const pattern = seen.get(`qformer.layers.${layer}.cross.pattern`).arraySync() as number[][][][];
  let want = 0;
  for (let head = 0; head < c.num_attention_heads; head++)
    for (let query = 0; query < Q; query++) {
      const slope = (score(head, query, 0.5) - score(head, query, -0.5)) / 1;
      want += Math.max(0, slope * pattern[0][head][query][n]);
    }
  assert.ok(Math.abs(got[n] - want) < 0.05 * Math.max(want, 1e-3), `${got[n]} and ${want}`);
  assert.equal((await wordRelevance(model, states, text, 0, { of: "match" })).length, states.shape[1]);
  await messageOf(() => wordRelevance(model, states, text, 0), "token is 0, expected a place from 1 to");
  await messageOf(() => wordRelevance(model, states, text, 1, { layer: 1 }), "layer 1 has no cross-attention; every 2 from 0 to 2 has");
  await keepsTensorCount(() => wordRelevance(model, states, text, token).then(() => {}));
  model.dispose();
});

test("qFormer() and load() say what does not fit", async () => {
  const model = await load<Blip2>(BLIP2);
  const { config, params } = model;
  const { pixels, text } = blip2Inputs(config.num_query_tokens);
  const states = model.see(pixels);
  const queries = params.queries.tile([3, 1, 1]) as tf.Tensor3D;
  const run = (inputs: object) => () => qFormer(params.qformer, config.qformer_config, inputs);
  await messageOf(run({}), "neither queries nor text came");
  await messageOf(run({ queries }), "queries came without the states of a picture");
  await messageOf(run({ queries, states: states.slice([0, 0, 0], [2, -1, -1]) }), "states are [2,10,32], expected [3, N, 32]");
  await messageOf(run({ ids: text.ids, padding: text.padding.slice([0, 0], [3, 2]) }), "padding is [3,2], expected [3, 15]");
  await messageOf(run({ ids: tf.zeros([1, 65], "int32") }), "65 text tokens, but its positions reach 64");
  await messageOf(run({ ids: text.ids, mask: [[1]] }), "the mask has 1 rows, row 0 1 columns; queries and text are 15 tokens");
  await messageOf(run({ ids: tf.zeros([1, 1], "int32"), mask: [[2]] }), "the mask's row 0, column 0 is 2; expected 1 (sees) or 0");
  await messageOf(() => model.wordLogits(states, text), "has no language head (cls.predictions");
  model.dispose();

  const folder = scratch();
  cpSync(BLIP2, folder, { recursive: true });
  const path = join(folder, "config.json");
  const raw = JSON.parse(readFileSync(path, "utf8"));
  writeFileSync(path, JSON.stringify({ ...raw, architectures: ["Blip2Model"] }));
  await messageOf(() => load(folder), 'architectures is ["Blip2Model"], of which none is known; known for blip-2:');
  await messageOf(
    () => blip2Config({ ...raw, qformer_config: { ...raw.qformer_config, use_qformer_text_input: false, encoder_hidden_size: 48 } }),
    "encoder_hidden_size is 48, vision_config: hidden_size 32",
  );
  await messageOf(() => blip2Config({ ...raw, vision_config: { ...raw.vision_config, qk_norm: true } }), "qk_norm: not handled here");
});
