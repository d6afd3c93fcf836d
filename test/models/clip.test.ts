import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { dataset } from "vitrine/data";
import { embedImages, embedTexts } from "vitrine/embed";
import { readJson } from "vitrine/files/json";
import { load } from "vitrine/models";
import { clipConfig, clipLogits, clipSpec, contrastiveLoss, unit } from "vitrine/models/clip";
import { leaves } from "vitrine/nn/spec";
import { record } from "vitrine/nn/tap";
import sharp from "sharp";
import { inputs, loadClip, logits, MODEL, modelWith, ORACLE, scratch } from "../support/clip";
import { expectClose, expectSame, farthest, keepsTensorCount, messageOf } from "../support/close";
import { noReference, reference } from "../support/reference";

before(() => engine().then(() => {}));

/** The four published sizes: width, layers, patch and picture of the vision tower; width of the text tower. (Radford et al. 2021, table 20.) */
const SIZES = {
  "ViT-B/32": { vision: [768, 12, 32, 224], text: 512, projection: 512 },
  "ViT-B/16": { vision: [768, 12, 16, 224], text: 512, projection: 512 },
  "ViT-L/14": { vision: [1024, 24, 14, 224], text: 768, projection: 768 },
  "ViT-L/14-336": { vision: [1024, 24, 14, 336], text: 768, projection: 768 },
};

const configOf = ({ vision: [D, layers, patch, image], text, projection }: (typeof SIZES)["ViT-B/32"]) => ({
  model_type: "clip",
  projection_dim: projection,
  text_config: { hidden_size: text, intermediate_size: 4 * text, num_attention_heads: text / 64, projection_dim: projection },
  vision_config: {
    hidden_size: D,
    intermediate_size: 4 * D,
    num_hidden_layers: layers,
    num_attention_heads: D / 64,
    patch_size: patch,
    image_size: image,
    projection_dim: projection,
  },
});

const countOf = (config: object) =>
  leaves(clipSpec(clipConfig(config as never))).reduce((sum, { spec }) => sum + spec.shape.reduce((a, b) => a * b, 1), 0);

/** Blocks of width D: two norms, four square layers, two of the feed-forward part, all with bias. */
const block = (D: number) => 2 * 2 * D + 4 * (D * D + D) + 2 * 4 * D * D + 4 * D + D;

for (const [name, size] of Object.entries(SIZES))
  test(`clipSpec() of ${name} has the parameters of its formula`, () => {
    const {
      vision: [D, layers, patch, image],
      text: T,
      projection,
    } = size;
    const vision = D + 3 * patch ** 2 * D + ((image / patch) ** 2 + 1) * D + 2 * D + layers * block(D) + 2 * D + D * projection;
    const text = 49408 * T + 77 * T + 12 * block(T) + 2 * T + T * projection;
    assert.equal(countOf(configOf(size)), vision + text + 1);
  });

test("clipSpec() of ViT-B/32 has the 151,277,313 parameters that OpenAI's notebook prints", () => {
  assert.equal(countOf({ model_type: "clip", text_config: {}, vision_config: {} }), 151_277_313);
  assert.equal(countOf(configOf(SIZES["ViT-B/32"])), 151_277_313);
});

test("clipSpec() names every tensor of the oracle's checkpoint once", () => {
  const names = leaves(clipSpec(clipConfig(readJson(join(MODEL, "config.json"))))).map(({ spec }) => spec.name);
  assert.equal(new Set(names).size, names.length);
});

test("clipConfig() reads what transformers 4 and 5 write as the same model, and fills in the class's defaults", () => {
  const [four, five] = ["model", "v5_layout"].map((folder) => clipConfig(readJson(join(ORACLE, "clip", folder, "config.json"))));
  assert.deepEqual(five, four);
  assert.equal(four.text_config.eos_token_id, 2);
  assert.deepEqual(clipConfig({}), clipConfig(configOf(SIZES["ViT-B/32"])));
  const old = clipConfig({ text_config: { hidden_size: 64 }, text_config_dict: { hidden_size: 128 }, vision_config_dict: null });
  assert.equal(old.text_config.hidden_size, 128, "the *_dict twin of old files wins, as in transformers");
});

test("clipConfig() lists every wrong type, size and unknown key of a part at once, before anything is allocated", async () => {
  const before = process.memoryUsage().rss;
  await messageOf(
    () =>
      clipConfig({
        vision_config: {
          hidden_size: -64,
          image_size: 1e9,
          patch_size: 0,
          num_hidden_layers: 1e6,
          hidden_act: 3,
          num_attention_heads: 2.5,
          layer_norm_eps: -1,
          hiden_size: 8,
        },
      }),
    "config.json: vision_config cannot be used:",
    "hidden_size: is -64, expected a whole number from 1 to 10,000,000",
    "image_size: is 1000000000, expected a whole number",
    "patch_size: is 0,",
    "num_hidden_layers: is 1000000, expected a whole number from 0 to 1,000",
    "hidden_act: is 3, expected a string",
    "num_attention_heads: is 2.5",
    "layer_norm_eps: is -1, expected a number of at least 0",
    "hiden_size: not handled here (nearest known key: hidden_size); it may change what the model computes",
  );
  assert.ok(process.memoryUsage().rss - before < 50e6);
  await messageOf(() => clipConfig({ projection_dim: "512", text_config: [] }), 'projection_dim: is "512", expected a number');
  await messageOf(() => clipConfig({ text_config: [] }), "config.json: text_config is a list; expected an object");
});

test("clipConfig() refuses heads that do not divide the width, and an activation that is not known", async () => {
  await messageOf(
    () => clipConfig({ text_config: { hidden_size: 512, num_attention_heads: 7 } }),
    "config.json: text_config: hidden_size 512 does not divide into num_attention_heads 7",
  );
  await messageOf(() => clipConfig({ vision_config: { num_attention_heads: 0 } }), "vision_config", "num_attention_heads");
  await messageOf(
    () => clipConfig({ vision_config: { hidden_act: "swish" } }),
    'config.json: vision_config: hidden_act "swish" is not known; known: gelu, quick_gelu',
  );
});

test("clipConfig() ignores a config's wish to run code, and says so", async () => {
  const warned = new Promise<Error>((resolve) => process.once("warning", resolve));
  const config = clipConfig({ auto_map: { AutoModel: "evil.Model" } });
  assert.deepEqual(config, clipConfig({}));
  assert.match((await warned).message, /config\.json: auto_map is ignored; Vitrine runs no code from a model's folder/);
});

test("encodeText() pools at the end-of-text token's first place, or at the largest id where eos_token_id is 2", async () => {
  const ids = tf.tensor2d(
    [
      [712, 5, 80, 713, 713],
      [712, 9, 5, 5, 90],
      [712, 9, 9, 9, 90],
    ],
    undefined,
    "int32",
  );
  const placeOf = async (eos: number) => {
    const clip = await load(
      modelWith((config) => {
        config.text_config.eos_token_id = eos;
      }),
    );
    const { tap, seen } = record(["final", "pooled"]);
    clip.encodeText(ids, undefined, tap).dispose();
    const [final, pooled] = [seen.get("text.final").arraySync() as number[][][], seen.get("text.pooled").arraySync() as number[][]];
    seen.dispose();
    clip.dispose();
    return pooled.map((row, b) => final[b].findIndex((other) => farthest(other, row) < 1e-6));
  };
  assert.deepEqual(await placeOf(2), [3, 0, 0], "the largest id, its first place");
  assert.deepEqual(await placeOf(5), [1, 2, 0], "the first 5; the first token where there is none, as transformers");
  ids.dispose();
});

test("encodeText() refuses more tokens than positions, and encodeImage() a picture without a patch", async () => {
  const clip = await loadClip();
  await keepsTensorCount(() => {
    const long = tf.ones([1, 78], "int32") as tf.Tensor2D;
    return messageOf(
      () => clip.encodeText(long),
      "encodeText: 78 tokens, the model has 77 positions; truncate (tokenizer.batch does)",
    ).finally(() => long.dispose());
  });
  const thin = tf.zeros([1, 13, 56, 3]) as tf.Tensor4D;
  await messageOf(() => clip.encodeImage(thin), "encodeImage: a picture of 13x56 pixels holds no patch of 14x14");
  thin.dispose();
  clip.dispose();
});

test("encodeText() without a mask reads every token, and a text of one batch is that of another", async () => {
  const clip = await loadClip();
  const x = inputs();
  const all = clip.encodeText(x.ids, x.mask).arraySync();
  const shortest = (x.mask.arraySync() as number[][]).map((row) => row.reduce((a, b) => a + b, 0));
  for (const [b, length] of shortest.entries()) {
    const alone = clip.encodeText(x.ids.slice([b, 0], [1, length])).dataSync();
    expectClose(alone, all[b], 1e-5, "padding changes nothing");
  }
  clip.dispose();
});

test("gelu and quick_gelu are different models", async () => {
  const x = inputs();
  const [quick, exact] = await Promise.all([loadClip(), load(modelWith(gelu))]);
  assert.ok(farthest(logits(quick, x), logits(exact, x)) > 1e-3);
  quick.dispose();
  exact.dispose();
});

// biome-ignore lint/suspicious/noExplicitAny: a config
const gelu = (config: any) => {
  config.vision_config.hidden_act = config.text_config.hidden_act = "gelu";
};

test("unit(), clipLogits() and contrastiveLoss() are their formulas", () => {
  tf.tidy(() => {
    const [images, texts] = [
      tf.tensor2d([
        [3, 4],
        [0, 2],
      ]),
      tf.tensor2d([
        [1, 0],
        [0, -5],
      ]),
    ];
    expectClose(unit(images).dataSync(), [0.6, 0.8, 0, 1], 1e-6);
    const scale = tf.scalar(Math.log(10));
    const want = [
      [6, -8],
      [0, -10],
    ];
    expectClose(clipLogits(scale, images, texts).dataSync(), want.flat(), 1e-5);
    const part = (row: number[], i: number) => Math.log(row.reduce((sum, l) => sum + Math.exp(l), 0)) - row[i];
    const columns = [0, 1].map((c) => want.map((row) => row[c]));
    const loss = [want, columns].map((m) => (part(m[0], 0) + part(m[1], 1)) / 2);
    expectClose(contrastiveLoss(scale, images, texts).dataSync(), [(loss[0] + loss[1]) / 2], 1e-5);
  });
});

test("encodeImage(), encodeText(), logits() and loss() leave no tensor", async () => {
  const clip = await loadClip();
  const x = inputs();
  await keepsTensorCount(() => clip.encodeImage(x.pixels).dispose());
  await keepsTensorCount(() => clip.encodeText(x.ids, x.mask).dispose());
  const [images, texts] = [clip.encodeImage(x.pixels), clip.encodeText(x.ids, x.mask)];
  await keepsTensorCount(() => clip.logits(images, texts).dispose());
  await keepsTensorCount(() => clip.loss(images, texts).dispose());
  tf.dispose([images, texts]);
  clip.dispose();
});

test(
  "transformers agrees: parameter counts, exact GELU, the newer end-of-text rule, and the shipped model",
  { skip: noReference },
  async (t) => {
    const x = inputs();
    const arrays = join(ORACLE, "clip", "arrays.safetensors");
    const variants = {
      gelu,
      "eos_token_id 713": (config: { text_config: { eos_token_id: number } }) => {
        config.text_config.eos_token_id = 713;
      },
    };
    const folders = Object.entries(variants).map(([name, change]) => ({ name, folder: modelWith(change) }));
    const shown = (await dataset("emoji", { split: "test" })).slice(0, 6);
    const pictures = await Promise.all(shown.map((one) => one.image()));
    const pictureFolder = scratch();
    const files = pictures.map((_, i) => join(pictureFolder, `${i}.png`));
    await Promise.all(
      pictures.map(({ width, height, data }, i) =>
        sharp(data, { raw: { width, height, channels: 3 } })
          .png()
          .toFile(files[i]),
      ),
    );
    const clip = await load("emoji-clip");
    const texts = [...shown.map((one) => one.caption), "a much longer text than the model reads, ".repeat(20), ""];
    const answers = reference([
      ...Object.values(SIZES).map((size) => ({ kind: "parameters", config: configOf(size) })),
      ...folders.map(({ folder }) => ({ kind: "logits", model: folder, arrays })),
      { kind: "embeddings", model: clip.folder, texts, pictures: files },
    ]);
    for (const [name, size] of Object.entries(SIZES))
      await t.test(`${name}: parameters`, () => assert.equal(countOf(configOf(size)), answers.shift()));
    for (const { name, folder } of folders)
      await t.test(`${name}: logits`, async () => {
        const model = await load(folder);
        expectClose(logits(model, x), answers.shift().logits, 1e-4);
        model.dispose();
      });
    await t.test("emoji-clip: embeddings", async () => {
      const [wanted] = answers;
      expectClose((await embedTexts(clip, texts)).values, wanted.texts, 2e-5);
      expectClose((await embedImages(clip, files)).values, wanted.images, 2e-5);
      expectSame((await embedImages(clip, pictures)).values, (await embedImages(clip, files)).values, "a picture and its file");
    });
    clip.dispose();
  },
);
