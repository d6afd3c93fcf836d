/** What LLaVA's and Ovis's families share: places of tokens, prompts, errors, spellings of names, memory. The numbers are the oracle's (test/parity). */
import assert from "node:assert/strict";
import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { hasBfloat16 } from "vitrine/engine/bfloat16";
import { openCheckpoint } from "vitrine/files/checkpoint";
import { readJson } from "vitrine/files/json";
import { saveSafetensors } from "vitrine/files/safetensors";
import type { Picture } from "vitrine/image/picture";
import type { Tiled } from "vitrine/image/tiles";
import { load, type VisionLanguageModel } from "vitrine/models";
import { packTiles } from "vitrine/models/anyres-features";
import { llavaModule } from "vitrine/models/llava-names";
import { record } from "vitrine/nn/tap";
import { ORACLE, scratch } from "../support/clip";
import { cosine, expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const FAMILIES = ["llava", "llava_hd", "llava_next", "llava_onevision", "ovis2", "ovis2_5"];
const loadFamily = (family: string): Promise<VisionLanguageModel> => load<VisionLanguageModel>(join(ORACLE, family, "model"));

/** Red grows to the right, green downwards, so that a colour tells a place. */
function ramp(width: number, height: number): Picture {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) data.set([(255 * (x + 0.5)) / width, (255 * (y + 0.5)) / height, 128], (y * width + x) * 3);
  return { width, height, data };
}

const logitsOf = (model: VisionLanguageModel, text: string, pictures: Picture[]): Float32Array =>
  tf.tidy(() => {
    const embeddings = model.embedPrompt(model.prompt(text, pictures));
    return model.language.logits(model.language.forward({ embeddings })).dataSync() as Float32Array;
  });

/** Mean colour of each patch of each tile: [tiles, rows · columns, 3] */
function patchColours({ pictures }: Tiled, rows: number, columns: number): Float32Array {
  const out = new Float32Array(pictures.length * rows * columns * 3);
  pictures.forEach(({ width, height, data }, tile) => {
    const [w, h] = [Math.floor(width / columns), Math.floor(height / rows)];
    for (let y = 0; y < rows * h; y++)
      for (let x = 0; x < columns * w; x++) {
        const token = (tile * rows + Math.floor(y / h)) * columns + Math.floor(x / w);
        for (let c = 0; c < 3; c++) out[token * 3 + c] += data[(y * width + x) * 3 + c] / (w * h);
      }
  });
  return out;
}

/** Colours of the tokens are those of their places in the picture, as far as these lie inside it. */
function checkPlaces(
  colours: Float32Array,
  places: ReturnType<VisionLanguageModel["prompt"]>["images"][number]["places"],
  { width, height }: Picture,
) {
  let seen = 0;
  places.forEach((place, i) => {
    if (!place) return;
    const [right, bottom] = [place.left + place.width, place.top + place.height];
    if (place.left < 0 || place.top < 0 || right > width || bottom > height) return;
    seen++;
    const [x, y] = [(place.left + right) / 2, (place.top + bottom) / 2];
    expectClose([colours[i * 3], colours[i * 3 + 1]], [(255 * x) / width, (255 * y) / height], 8, `token ${i} at ${x}, ${y}`);
  });
  assert.ok(seen > places.length / 3, `only ${seen} of ${places.length} places lie inside the picture`);
}

for (const [family, side, maxTiles] of [
  ["llava_next", 4, null],
  ["llava_onevision", 3, 9],
] as const)
  for (const size of [
    [300, 90],
    [90, 300],
    [120, 120],
    [251, 130],
  ])
    test(`${family}: a picture of ${size.join(" x ")}: each token shows what its place says, newlines show nothing`, async () => {
      const model = await loadFamily(family);
      const picture = ramp(size[0], size[1]);
      const [{ tiled, places, start, end }] = model.prompt("<image>", [picture]).images;
      assert.equal(places.length, end - start);
      const colours = tf.tensor3d(patchColours(tiled, side, side), [tiled.count, side * side, 3]);
      const packed = packTiles(colours, tf.tensor1d([-1, -1, -1]), tiled, { side, maxTiles });
      const values = packed.dataSync() as Float32Array;
      places.forEach((place, i) => assert.equal(place === undefined, values[i * 3] === -1, `token ${i} is a newline, or none`));
      checkPlaces(values, places, picture);
      tf.dispose([colours, packed]);
      model.dispose();
    });

for (const [family, rows, columns] of [
  ["llava", 3, 3],
  ["llava_hd", 4, 4],
  ["ovis2", 2, 2],
] as const)
  test(`${family}: each token shows what its place says`, async () => {
    const model = await loadFamily(family);
    const picture = ramp(240, 160);
    const [{ tiled, places }] = model.prompt("<image>", [picture]).images;
    const colours = patchColours(tiled, rows, columns);
    const shown = places.filter(Boolean);
    assert.equal(shown.length, tiled.count * rows * columns);
    checkPlaces(colours, shown, picture);
    model.dispose();
  });

test("ovis2_5: the tokens of a picture tile it, whatever its shape", async () => {
  const model = await loadFamily("ovis2_5");
  for (const [width, height] of [
    [300, 90],
    [33, 120],
  ]) {
    const picture = ramp(width, height);
    const [{ tiled, places }] = model.prompt("<image>", [picture]).images;
    const [rows, columns] = [tiled.size.height / 16, tiled.size.width / 16];
    assert.equal(places.length, rows * columns + 2);
    checkPlaces(patchColours(tiled, rows, columns), places.slice(1, -1), picture);
  }
  model.dispose();
});

test("llava_onevision: several pictures are not cut, and each ends with one newline", async () => {
  const model = await loadFamily("llava_onevision");
  const { images } = model.prompt("<image> and <image>", [ramp(200, 50), ramp(50, 50)]);
  for (const { tiled, places } of images) {
    assert.equal(tiled.count, 1);
    assert.deepEqual([places.length, places.findIndex((p) => !p)], [10, 9]);
  }
  model.dispose();
});

for (const family of FAMILIES)
  test(`${family}: embedding a prompt leaves no tensor behind, and looking changes no number`, async () => {
    const model = await loadFamily(family);
    const prompt = model.prompt("<image>\nhi", [ramp(60, 40)]);
    const { tap, seen } = record();
    const [plain, watched] = [model.embedPrompt(prompt), model.embedPrompt(prompt, { tap })];
    expectSame(watched.dataSync(), plain.dataSync());
    tf.dispose([plain, watched]);
    seen.dispose();
    await keepsTensorCount(() => logitsOf(model, "<image>\nhi", [ramp(60, 40)]));
    model.dispose();
  });

for (const family of FAMILIES)
  test(`${family} in bfloat16 says nearly what it says in float32`, { skip: !hasBfloat16() && "no bfloat16 here" }, async () => {
    const [wide, half] = [await loadFamily(family), await load<VisionLanguageModel>(join(ORACLE, family, "model"), { dtype: "bfloat16" })];
    const [a, b] = [wide, half].map((model) => logitsOf(model, "<image>\nWhat is this?", [ramp(60, 40)]));
    assert.ok(cosine(a, b) > 0.998, `cosine ${cosine(a, b)}`);
    wide.dispose();
    half.dispose();
  });

test("dispose() frees everything that load() made", async () => {
  for (const family of FAMILIES) await keepsTensorCount(async () => (await loadFamily(family)).dispose());
});

test("llava: layers behind the one that is read run only for somebody who watches them", async () => {
  const model = await loadFamily("llava"); // reads layer -2 of 3
  const prompt = model.prompt("<image>", [ramp(50, 50)]);
  const [all, some] = [record(), record("projector")];
  const names = (tap: typeof all.tap) => {
    const met: string[] = [];
    const watch = Object.assign(
      <T extends tf.Tensor>(name: string, x: T): T => {
        met.push(name);
        return tap(name, x);
      },
      { watches: (prefix: string) => tap === all.tap || prefix.startsWith("projector") },
    );
    model.embedPrompt(prompt, { tap: watch }).dispose();
    return met;
  };
  assert.ok(names(all.tap).includes("vision.blocks.2.resid_post"));
  assert.ok(!names(some.tap).some((name) => name.startsWith("vision.blocks.2")));
  all.seen.dispose();
  some.seen.dispose();
  model.dispose();
});

test("prompt(): every picture needs its mark, and a text must not hold a picture's inner tokens", async () => {
  const [llava, ovis] = [await loadFamily("llava"), await loadFamily("ovis2")];
  await messageOf(() => llava.prompt("hi", [ramp(9, 9)]), "the text has 0 <image>, 1 pictures came");
  await messageOf(() => llava.prompt("<image> <image>", [ramp(9, 9)]), "the text has 2 <image>, 1 pictures came");
  await messageOf(() => ovis.prompt("<image> <IMG_ATOM>", [ramp(9, 9)]), 'the text holds "<IMG_ATOM>"', "write <image> for a picture");
  llava.dispose();
  ovis.dispose();
});

test("embedPrompt(): tokens and features that differ in number are an error with the budget", async () => {
  const model = await loadFamily("llava_next");
  const prompt = model.prompt("<image>\nhi", [ramp(80, 40)]);
  const [{ start, end }] = prompt.images;
  const image = prompt.ids[start];
  const [less, more] = [prompt.ids.filter((_, i) => i !== start), [...prompt.ids, image]];
  await messageOf(
    () => model.embedPrompt({ ...prompt, ids: less }),
    `the ids hold ${end - start - 1} image tokens, the pictures give ${end - start} (picture 1:`,
  );
  await messageOf(() => model.embedPrompt({ ...prompt, ids: more }), `hold ${end - start + 1} image tokens`);
  const shorter = { ...prompt, ids: less, images: [{ ...prompt.images[0], end: end - 1 }] };
  await messageOf(
    () => model.embedPrompt(shorter),
    `picture 1 has ${end - start - 1} tokens in the prompt, its 3 tiles (1 x 2 and 1 of the whole) give ${end - start}`,
    `${less.length - (end - start - 1)} of text`,
  );
  await messageOf(() => model.embedPrompt(prompt, { from: prompt.ids.length }), "from");
  model.dispose();
});

/** A copy of a family's model with other names of weights, and a changed config. */
async function respelled(family: string, name: (name: string) => string, change: (config: { [key: string]: unknown }) => void = () => {}) {
  const folder = join(scratch(), "model");
  cpSync(join(ORACLE, family, "model"), folder, { recursive: true });
  const { tensors, close } = openCheckpoint(folder);
  const renamed = [...tensors].map(([key, t]) => ({ name: name(key), dtype: t.dtype, shape: t.shape, data: t.read() }));
  close();
  for (const file of readdirSync(folder)) if (/^model.*safetensors/.test(file)) rmSync(join(folder, file));
  await saveSafetensors(join(folder, "model.safetensors"), renamed as never, { format: "pt" });
  const config = readJson(join(folder, "config.json"));
  change(config);
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  return folder;
}

test("llava: transformers 5's names of weights, those of its modules, and its config spell the same model", async () => {
  const own = await loadFamily("llava");
  const want = logitsOf(own, "USER: <image>\nhi", [ramp(60, 40)]);
  own.dispose();
  const five = readJson(join(ORACLE, "llava", "v5_layout", "config.json"));
  const published: string[] = JSON.parse(readFileSync(join(ORACLE, "llava", "v5_layout", "weight_names.json"), "utf8"));
  const spellings: [string, (name: string) => string][] = [
    ["files of transformers 5", (name) => name.replace("vision_tower.vision_model.", "vision_tower.")],
    ["modules", (name) => llavaModule(name)],
  ];
  for (const [what, spell] of spellings) {
    const folder = await respelled("llava", spell, (config) => {
      for (const key of Object.keys(config)) delete config[key];
      Object.assign(config, five);
    });
    if (what.startsWith("files")) {
      const { tensors, close } = openCheckpoint(folder);
      assert.deepEqual([...tensors.keys()].sort(), published.sort());
      close();
    }
    const model = await load<VisionLanguageModel>(folder);
    expectSame(logitsOf(model, "USER: <image>\nhi", [ramp(60, 40)]), want, what);
    model.dispose();
  }
});

test("llava: what changes the computation and is not handled is an error that names it", async () => {
  const refused = async (family: string, change: (config: { [key: string]: never }) => void, ...parts: string[]) => {
    const folder = await respelled(family, (name) => name, change as never);
    await messageOf(() => load(folder), ...parts);
  };
  await refused("llava", (c) => Object.assign(c, { vision_feature_layer: -9 }), "vision_feature_layer -9", "the tower has 3 layers");
  await refused("llava", (c) => Object.assign(c, { vision_feature_layer: "last" }), "vision_feature_layer");
  await refused("llava", (c) => Object.assign(c, { projector_hidden_act: "tanh" }), 'projector_hidden_act "tanh" is not known');
  await refused("llava", (c) => Object.assign(c, { vision_feature_scale: 2 }), "vision_feature_scale: not handled here");
  await refused(
    "llava",
    (c) => Object.assign(c.text_config, { model_type: "gemma" }),
    'model_type "gemma" is not known; known: llama, mistral',
  );
  await refused("llava_next", (c) => Object.assign(c.text_config, { sliding_window: 64 }), "sliding_window 64 is not handled");
  await refused("llava_onevision", (c) => Object.assign(c, { use_image_newline_parameter: false }), "use_image_newline_parameter false");
  await refused("llava_hd", (c) => Object.assign(c, { mm_projector_type: "linear" }), 'mm_projector_type "linear" (handled: "mlp2x_gelu")');
  await refused("llava_hd", (c) => Object.assign(c, { mm_vision_tower: "./nowhere" }), "nowhere");
  await refused(
    "ovis2",
    (c) => Object.assign(c.vision_config, { tokenize_function: "gumbel_argmax" }),
    'tokenize_function "gumbel_argmax"',
  );
  await refused("ovis2", (c) => Object.assign(c, { hidden_size: 64 }), "hidden_size 64 is 32 in text_config");
  await refused("ovis2_5", (c) => Object.assign(c.vit_config, { fullatt_block_indexes: "1|2" }), "fullatt_block_indexes");
  await refused("ovis2_5", (c) => Object.assign(c.llm_config, { use_sliding_window: true }), "use_sliding_window");
});

test("llava: several layers are read side by side", async () => {
  const folder = join(scratch(), "model");
  cpSync(join(ORACLE, "llava", "model"), folder, { recursive: true });
  const config = readJson(join(folder, "config.json"));
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, vision_feature_layer: [-2, 1] }));
  await messageOf(() => load(folder), "multi_modal_projector.linear_1.weight: file [32,32], config [32,64]");
});
