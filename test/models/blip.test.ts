/** BLIP beside the oracle's numbers (test/parity/blip.ts): what must be equal whichever way it is computed, and what it says of wrong input. */
import assert from "node:assert/strict";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { embedImages, embedTexts } from "vitrine/embed";
import { engine, tf } from "vitrine/engine";
import { openSafetensors, saveSafetensors, toFloat32 } from "vitrine/files/safetensors";
import { collect, generate } from "vitrine/generate";
import { readPicture } from "vitrine/image/picture";
import { type BlipAnswerer, type BlipCaptioner, type BlipRetrieval, load } from "vitrine/models";
import { blipConfig } from "vitrine/models/blip";
import { type Adaptable, withLora } from "vitrine/nn/lora";
import { edit, record } from "vitrine/nn/tap";
import { zeroShot } from "vitrine/retrieval";
import { channelsLast, openOracle } from "../parity/check";
import { pairsOf } from "../parity/matching";
import { ORACLE, scratch } from "../support/clip";
import { cosine, expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const folderOf = (family: string) => join(ORACLE, family, "model");
const retrieval = (options?: object) => load<BlipRetrieval>(folderOf("blip_itm"), options);
const captioner = (options?: object) => load<BlipCaptioner>(folderOf("blip_caption"), options);
const answerer = (options?: object) => load<BlipAnswerer>(folderOf("blip_vqa"), options);
const pixelsOf = (family: string) => channelsLast(openOracle(ORACLE, family).array("forward.pixel_values"));
const firstOf = (x: tf.Tensor4D) => x.slice([0, 0, 0, 0], [1, -1, -1, -1]) as tf.Tensor4D;
const files = ["rgb_wide.png", "photo.jpg"].map((name) => join(ORACLE, "images", name));

for (const dtype of ["float32", "bfloat16"] as const)
  test(`the decoder in ${dtype} says the same with a cache, however a text is cut`, async () => {
    const model = await captioner({ dtype });
    const { language } = model;
    const pixels = firstOf(pixelsOf("blip_caption"));
    const { embeddings, encoded } = model.ask(pixels, "a photo of a red bus on the road");
    const N = embeddings.shape[1];
    assert.ok(N > 6);
    const whole = language.forward({ embeddings, encoded });
    await keepsTensorCount(() => {
      for (const cuts of [[N], [N - 2, 1, 1], [2, N - 2]]) {
        const cache = language.makeCache(N);
        let at = 0;
        for (const count of cuts) {
          const part = embeddings.slice([0, at, 0], [1, count, -1]);
          const got = language.forward({ embeddings: part, encoded, cache });
          const want = whole.slice([0, at, 0], [1, count, -1]);
          expectClose(got.dataSync(), want.dataSync(), dtype === "float32" ? 1e-5 : 6e-2, `${cuts}, from ${at} on`);
          tf.dispose([part, got, want]);
          at += count;
        }
        assert.equal(cache.length, N);
        cache.dispose();
      }
    });
    model.dispose();
  });

test("generate() captions and answers: greedy as word after word without a cache, with beams, and ends at [SEP]", async () => {
  const model = await captioner();
  const pixels = firstOf(pixelsOf("blip_caption"));
  const states = model.see(pixels);
  const asked = model.ask(pixels, "a photo of");
  const ids = [...asked.start];
  for (let i = 0; i < 8; i++) {
    const logits = model.wordLogits(states, { ids: tf.tensor2d([ids], undefined, "int32") });
    ids.push(
      logits
        .slice([0, ids.length - 1, 0], [1, 1, -1])
        .argMax(-1)
        .dataSync()[0],
    );
  }
  const said = await collect(generate(model.language, { ...asked, maxNewTokens: 8, ignoreEos: true, tokenizer: model.tokenizer }));
  assert.deepEqual([...asked.start, ...said.ids], ids);
  const beams = await collect(generate(model.language, { ...asked, maxNewTokens: 8, minNewTokens: 8, numBeams: 3 }));
  assert.equal(beams.beams!.length, 3);
  // A beam's score is what the whole text says of its words.
  const best = beams.beams![0];
  const all = [...asked.start, ...best.ids];
  const logprobs = tf.tidy(() =>
    tf.logSoftmax(model.wordLogits(states, { ids: tf.tensor2d([all], undefined, "int32") })).arraySync(),
  ) as number[][][];
  const want = best.ids.map((id, i) => logprobs[0][asked.start.length + i - 1][id]);
  expectClose(best.logprobs, want, 1e-4, "log-probabilities of the best beam");
  assert.deepEqual(model.language.endTokens, [model.tokenizer.idOf("[SEP]")]);
  await keepsTensorCount(() => tf.dispose(model.ask(pixels)));
  model.dispose();
});

test("a question's padding is as if it were not there, and the answer looks at the picture", async () => {
  const model = await answerer();
  const pixels = firstOf(pixelsOf("blip_vqa"));
  const states = model.see(pixels);
  const { ids } = model.read(["how many dogs are there?"]);
  const answer = { ids: model.read(["two dogs"]).ids };
  const wide = tf.concat([ids, tf.fill([1, 3], 7, "int32")], 1) as tf.Tensor2D;
  const padding = tf.concat([tf.onesLike(ids), tf.zeros([1, 3], "int32")], 1) as tf.Tensor2D;
  const logits = model.wordLogits(model.readQuestion(states, { ids }), answer);
  expectClose(model.wordLogits(model.readQuestion(states, { ids: wide, padding }), answer).dataSync(), logits.dataSync(), 5e-6);
  const other = model.wordLogits(model.readQuestion(states.mul(0.5), { ids }), answer);
  assert.notDeepEqual(other.dataSync(), logits.dataSync());
  expectSame(
    model.ask(pixels, "how many dogs are there?").encoded.states.dataSync(),
    model.readQuestion(states, { ids }).states.dataSync(),
  );
  await messageOf(() => model.language.forward({ embeddings: model.language.embed(answer.ids) }), "give encoded: { states }");
  await messageOf(() => model.ask(pixelsOf("blip_vqa"), "how many?"), "2 pictures; expected one, [1, S, S, 3]");
  await keepsTensorCount(() => tf.dispose(model.ask(pixels, "how many dogs are there?")));
  model.dispose();
});

test("padding is as if it were not there, one picture goes with every text, and looking changes no digit", async () => {
  const model = await retrieval();
  const { pixels, words } = pairsOf(openOracle(ORACLE, "blip_itm"));
  const states = model.see(pixels);
  const length = words.padding.slice([1, 0], [1, -1]).sum().dataSync()[0];
  assert.ok(length < words.ids.shape[1]);
  const one = { ids: words.ids.slice([1, 0], [1, length]) as tf.Tensor2D };
  const second = states.slice([1, 0, 0], [1, -1, -1]) as tf.Tensor3D;
  const logits = model.matchingLogits(states, words);
  expectClose(model.matchingLogits(second, one).dataSync(), logits.slice([1, 0], [1, 2]).dataSync(), 5e-6);
  expectClose(model.encodeWords(one).dataSync(), model.encodeWords(words).slice([1, 0], [1, -1]).dataSync(), 5e-6);
  const repeated = tf.concat([second, second, second]) as tf.Tensor3D;
  expectSame(model.matchingLogits(second, words).dataSync(), model.matchingLogits(repeated, words).dataSync());
  await messageOf(() => model.matchingLogits(states, one), "3 pictures and 1 texts");
  const { tap, seen } = record();
  expectSame(model.matchingLogits(states, words, { tap }).dataSync(), logits.dataSync());
  assert.equal(seen.get("fused.blocks.1.cross_attn.pattern").shape[3], states.shape[1]);
  seen.dispose();
  const blind = edit(/fused\.blocks\.\d\.cross_attn_out/, (x) => tf.zerosLike(x));
  assert.notDeepEqual(model.matchingLogits(states, words, { tap: blind.tap }).dataSync(), logits.dataSync());
  blind.check();
  await keepsTensorCount(() => tf.dispose([model.matchingLogits(states, words), model.encodeImage(pixels), model.encodeWords(words)]));
  model.dispose();
});

test("embedImages(), embedTexts() and zeroShot() take a retrieval model", async () => {
  const model = await retrieval();
  const images = await embedImages(model, files);
  const texts = await embedTexts(model, ["a red bus", "a photo of a cat", "two"]);
  assert.deepEqual([images.count, images.width, texts.count, texts.width], [2, model.width, 3, model.width]);
  const picture = model.imageProcessor.process(await readPicture(files[1]));
  const { height, width } = model.imageProcessor.size;
  const states = model.see(tf.tensor4d(picture, [1, height, width, 3]));
  expectClose(images.values.subarray(images.width), model.encodePicture(states).dataSync(), 1e-6);
  const scores = (await zeroShot(model, files, ["bus", "cat"])).objects() as { picture: number; score: number }[];
  for (const i of [0, 1])
    assert.ok(Math.abs(scores.filter(({ picture }) => picture === i).reduce((sum, { score }) => sum + score, 0) - 1) < 1e-5);
  assert.deepEqual([(await embedTexts(model, [])).width, model.width], [model.config.image_text_hidden_size, model.width]);
  model.dispose();
});

test("an adapter whose B is zero changes no digit, of any of the three", async () => {
  const pixels = pixelsOf("blip_itm");
  const tokens = (model: { read(texts: string[]): { ids: tf.Tensor2D } }) => ({ ids: model.read(["a red bus"]).ids });
  const one = firstOf(pixels);
  const runs: [Promise<Adaptable>, (model: never) => tf.Tensor][] = [
    [retrieval(), (m: BlipRetrieval) => m.matchingLogits(m.see(one), tokens(m))],
    [captioner(), (m: BlipCaptioner) => m.wordLogits(m.see(one), tokens(m))],
    [answerer(), (m: BlipAnswerer) => m.wordLogits(m.readQuestion(m.see(one), tokens(m)), tokens(m))],
  ];
  for (const [loading, run] of runs) {
    const base = await loading;
    const { model, adapter } = withLora(base, { targetModules: ["query", "value", "qkv"], r: 4 });
    assert.ok(adapter.modules.length > 6);
    expectSame(run(model as never).dataSync(), run(base as never).dataSync());
    adapter.dispose();
  }
});

test("bfloat16 and int8 weights leave heads and embeddings near those of float32", async () => {
  const { pixels, words } = pairsOf(openOracle(ORACLE, "blip_itm"));
  const outputs = async (dtype: string) => {
    const model = await retrieval({ dtype });
    const out = [model.encodeImage(pixels), model.encodeWords(words), model.matchingLogits(model.see(pixels), words)].map((x) =>
      x.dataSync(),
    );
    model.dispose();
    return out;
  };
  const want = await outputs("float32");
  for (const dtype of ["bfloat16", "int8"])
    (await outputs(dtype)).forEach((got, i) => assert.ok(cosine(got, want[i]) > 0.99, `${dtype} ${i}`));
});

test("a head's copy of the word table is left out, a matrix of its own is used", async () => {
  const file = openSafetensors(join(folderOf("blip_caption"), "model.safetensors"));
  const bytes = (values: Float32Array) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const all = [...file.tensors.values()].map((source) => ({
    name: source.name,
    dtype: "F32" as const,
    shape: source.shape,
    values: toFloat32(source),
  }));
  const table = all.find(({ name }) => name.endsWith("word_embeddings.weight"))!;
  const withHead = async (change: (x: number) => number) => {
    const folder = join(scratch(), "model");
    cpSync(folderOf("blip_caption"), folder, { recursive: true });
    const head = { ...table, name: "text_decoder.cls.predictions.decoder.weight", values: table.values.map(change) };
    const saved = [...all, head].map(({ values, ...one }) => ({ ...one, data: bytes(values) }));
    await saveSafetensors(join(folder, "model.safetensors"), saved, { format: "pt" });
    return load<BlipCaptioner>(folder);
  };
  const [plain, copy, own] = [await captioner(), await withHead((x) => x), await withHead((x) => 2 * x)];
  file.close();
  assert.deepEqual([copy.params.decoder.words, own.params.decoder.words?.shape], [undefined, table.shape]);
  const hidden = tf.randomNormal([1, 2, table.shape[1]], 0, 1, "float32", 5) as tf.Tensor3D;
  const scores = (model: BlipCaptioner) => model.language.logits(hidden).sub(model.params.decoder.head.bias);
  expectSame(scores(copy).dataSync(), scores(plain).dataSync());
  expectClose(scores(own).dataSync(), scores(plain).mul(2).dataSync(), 1e-5);
  for (const model of [plain, copy, own]) model.dispose();
});

test("blipConfig() and load() say what does not fit", async () => {
  const raw = JSON.parse(readFileSync(join(folderOf("blip_vqa"), "config.json"), "utf8"));
  const text = (change: object) => () => blipConfig({ ...raw, text_config: { ...raw.text_config, ...change } });
  await messageOf(text({ is_decoder: false }), "is_decoder is false");
  await messageOf(text({ position_embedding_type: "relative_key" }), 'position_embedding_type "relative_key" is not known');
  await messageOf(text({ label_smoothing: "much" }), 'label_smoothing: is "much", expected a number');
  await messageOf(text({ rotary: true }), "rotary: not handled here");
  await messageOf(
    () => blipConfig({ ...raw, vision_config: { hidden_size: 30, num_attention_heads: 4 } }),
    "hidden_size 30 does not divide",
  );
  const published = blipConfig({ architectures: ["BlipForQuestionAnswering"], model_type: "blip" }); // files may leave out all defaults
  assert.deepEqual(
    [
      published.text_config.vocab_size,
      published.text_config.bos_token_id,
      published.vision_config.image_size,
      published.vision_config.layer_norm_eps,
    ],
    [30524, 30522, 384, 1e-5],
  );
  // Older files hold every key of a part, those that it does not use too.
  blipConfig({ ...raw, vision_config: { ...raw.vision_config, eos_token_id: null, num_channels: 3, dropout: 0, num_beams: 1 } });
  const folder = join(scratch(), "model");
  cpSync(folderOf("blip_vqa"), folder, { recursive: true });
  const write = (config: object) => writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  write({ ...raw, architectures: ["BlipModel"] });
  await messageOf(() => load(folder), 'architectures is ["BlipModel"], of which none is known; known for blip: BlipForImageTextRetrieval,');
  write({ ...raw, text_config: { ...raw.text_config, hidden_size: 24 } });
  await messageOf(() => load(folder), "text_config: hidden_size is 24, vision_config: hidden_size 32");
  write({ ...raw, vision_config: { ...raw.vision_config, num_hidden_layers: 3 } });
  await keepsTensorCount(() => messageOf(() => load(folder), "does not fit this model", "missing     vision_model.encoder.layers.2."));
});
