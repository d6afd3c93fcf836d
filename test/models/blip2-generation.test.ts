/** BLIP-2, InstructBLIP and MiniGPT-4 as models that answer: folders of every age, dtypes, prompts, adapters by PEFT's names, errors. */
import assert from "node:assert/strict";
import { cpSync, existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { readJson } from "vitrine/files/json";
import { openSafetensors } from "vitrine/files/safetensors";
import { type Picture, readPicture } from "vitrine/image/picture";
import { load, type VisionLanguageModel } from "vitrine/models";
import { loadAdapter, saveAdapter } from "vitrine/nn/peft";
import type { Dtype } from "vitrine/nn/spec";
import { greedy } from "../parity/generation";
import { ORACLE, scratch } from "../support/clip";
import { cosine, expectClose, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const FAMILIES = ["blip2_opt", "blip2_t5", "instructblip", "instructblip_t5", "minigpt4"];
const TEXT = "what is in the picture?";
const textFor = (family: string, text = TEXT) => (family === "minigpt4" ? `###Human: <Img><ImageHere></Img> ${text} ###Assistant: ` : text);

const picture = (): Promise<Picture> => readPicture(join(ORACLE, "images", "photo.jpg"));
const folderOf = (family: string) => join(ORACLE, family, "model");
const open = (family: string, dtype: Dtype = "float32") => load<VisionLanguageModel>(folderOf(family), { dtype });

/** Scores of the next token. */
function scores(model: VisionLanguageModel, text: string, pictures: Picture[]): Float32Array {
  return tf.tidy(() => {
    const { language } = model;
    const embeddings = model.embedPrompt(model.prompt(text, pictures));
    const start = () => language.embed(tf.tensor2d([language.encoder!.startToken], [1, 1], "int32"));
    const hidden = language.encoder
      ? language.forward({ embeddings: start(), encoded: { states: language.encoder.encode({ embeddings }) } })
      : language.forward({ embeddings });
    return language.logits(hidden.slice([0, hidden.shape[1] - 1, 0], [1, 1, -1])).dataSync() as Float32Array;
  });
}

/** A copy of a family's folder with another config.json. */
function changed(family: string, change: (config: { [key: string]: unknown }) => void, file = "config.json"): string {
  const folder = join(scratch(), "model");
  cpSync(folderOf(family), folder, { recursive: true });
  const config = readJson(join(folder, file)) as { [key: string]: unknown };
  change(config);
  writeFileSync(join(folder, file), JSON.stringify(config));
  return folder;
}

for (const family of FAMILIES) {
  test(`${family}: a model leaves no tensor behind, and its words depend on its picture`, async () => {
    const [photo, other] = [await picture(), await readPicture(join(ORACLE, "images", "rgb_wide.png"))];
    await keepsTensorCount(async () => {
      const model = await open(family);
      const [one, two] = [photo, other].map((p) => scores(model, textFor(family), [p]));
      assert.notDeepEqual(one, two);
      const embeddings = model.embedPrompt(model.prompt(textFor(family), [photo]));
      const { ids, logits } = await greedy(model.language, embeddings, 3);
      assert.equal(ids.length, 3);
      tf.dispose([embeddings, logits]);
      model.dispose();
    });
  });

  test(`${family}: other dtypes stay near float32`, async () => {
    const photo = await picture();
    const model = await open(family);
    const want = scores(model, textFor(family), [photo]);
    model.dispose();
    for (const [dtype, near] of [
      ["bfloat16", 0.999],
      ["int8", 0.998],
      ["nf4", 0.8],
    ] as const) {
      const other = await open(family, dtype);
      const got = scores(other, textFor(family), [photo]);
      assert.ok(cosine(got, want) > near, `${dtype}: cosine ${cosine(got, want)}`);
      other.dispose();
    }
  });

  test(`${family}: an adapter is saved under the names that PEFT gave it`, async () => {
    const model = await open(family);
    for (const { adapter_trained } of readJson(join(ORACLE, family, "cases.json")).lora as { adapter_trained: string }[]) {
      const folder = join(ORACLE, family, adapter_trained);
      const trained = loadAdapter(model, folder);
      const saved = scratch();
      await saveAdapter(trained.model, trained.adapter, saved);
      const [got, want] = [saved, folder].map((f) => openSafetensors(join(f, "adapter_model.safetensors")));
      assert.deepEqual([...got.tensors.keys()].sort(), [...want.tensors.keys()].sort());
      for (const { close } of [got, want]) close();
      trained.adapter.dispose();
    }
    model.dispose();
  });
}

for (const family of FAMILIES.filter((family) => existsSync(join(ORACLE, family, "v5_layout", "config.json"))))
  test(`${family}: the config that transformers 5 writes means the same model`, async () => {
    const photo = await picture();
    const model = await open(family);
    const want = scores(model, textFor(family), [photo]);
    model.dispose();
    const folder = changed(family, () => {});
    cpSync(join(ORACLE, family, "v5_layout", "config.json"), join(folder, "config.json"));
    const newer = await load<VisionLanguageModel>(folder);
    expectClose(scores(newer, textFor(family), [photo]), want, 0);
    newer.dispose();
  });

test("InstructBLIP's Q-Former reads the instruction, BLIP-2's does not", async () => {
  const photo = await picture();
  for (const [family, reads] of [
    ["instructblip", true],
    ["blip2_opt", false],
  ] as const) {
    const model = await open(family);
    const queries = (text: string) => {
      const prompt = model.prompt(text, [photo]);
      const [{ start, end, places }] = prompt.images;
      assert.equal(start, 0, "the picture stands before the text's first special token");
      assert.ok(places.every((place) => place === undefined));
      return tf.tidy(() =>
        model
          .embedPrompt(prompt)
          .slice([0, start, 0], [1, end - start, -1])
          .dataSync(),
      );
    };
    const [one, two, marked] = [queries("describe it"), queries("count the cats"), queries("<image>describe it")];
    assert.deepEqual(marked, one, "a mark before the text changes nothing");
    assert[reads ? "notDeepEqual" : "deepEqual"](one, two);
    model.dispose();
  }
});

test("a prompt without a picture is the text alone, and MiniGPT-4 takes several pictures where they stand", async () => {
  const [photo, model] = [await picture(), await open("blip2_opt")];
  assert.deepEqual(model.prompt(TEXT, []).ids, model.tokenizer.encode(TEXT));
  model.dispose();
  const mini = await open("minigpt4");
  const prompt = mini.prompt("first <Img><ImageHere></Img> second <Img><ImageHere></Img> which?", [photo, photo]);
  assert.equal(prompt.images.length, 2);
  const piece = (text: string, addSpecialTokens: boolean) => mini.tokenizer.encode(text, { addSpecialTokens });
  const [{ start, end }, second] = prompt.images;
  assert.deepEqual(prompt.ids.slice(0, start), piece("first <Img>", true));
  assert.deepEqual(prompt.ids.slice(end, second.start), piece("</Img> second <Img>", false));
  assert.deepEqual(prompt.ids.slice(second.end), piece("</Img> which?", false));
  const rows = mini.embedPrompt(prompt);
  const width = rows.shape[2];
  const at = (from: number) => rows.slice([0, from, 0], [1, end - start, width]).dataSync();
  assert.deepEqual(at(second.start), at(start));
  rows.dispose();
  mini.dispose();
});

test("prompts that do not fit say what to do", async () => {
  const photo = await picture();
  const model = await open("blip2_opt");
  await messageOf(() => model.prompt("what is <image> this?", [photo]), "reads one picture, before the text", "what is <image> this?");
  await messageOf(() => model.prompt("same?", [photo, photo]), "2 pictures came; BLIP-2 reads one");
  await messageOf(() => model.prompt("<image>what?", []), "the text has 1 <image>, 0 pictures came");
  const prompt = model.prompt("what?", [photo]);
  await messageOf(() => model.embedPrompt({ ...prompt, ids: prompt.ids.slice(1) }), "the ids hold 4 image tokens, the pictures give 5");
  model.dispose();
  const mini = await open("minigpt4");
  await messageOf(() => mini.prompt("what?", [photo]), "the text has 0 <ImageHere>, 1 pictures came");
  mini.dispose();
});

test("folders that do not fit say every misfit", async () => {
  await messageOf(
    () => load(changed("blip2_opt", (c) => (c.architectures = ["Blip2Model"]))),
    "Blip2Model",
    "Blip2ForConditionalGeneration",
  );
  await messageOf(
    () => load(changed("blip2_opt", (c) => ((c.text_config as { model_type: string }).model_type = "gptj"))),
    'config.json: text_config: model_type "gptj" is not known; known: opt, t5, llama',
  );
  await messageOf(
    () => load(changed("blip2_t5", (c) => ((c.text_config as { new_key: number }).new_key = 1))),
    "new_key: not handled here",
  );
  await messageOf(
    () => load(changed("blip2_opt", (c) => (c.num_query_tokens = 6))),
    "wrong shape query_tokens: file [1,5,24], config [1,6,24]",
  );
  const withoutQueries = changed("instructblip", () => {});
  rmSync(join(withoutQueries, "qformer_tokenizer"), { recursive: true });
  await messageOf(() => load(withoutQueries), "qformer_tokenizer is missing", "reads the instruction with a tokenizer of its own");
  const layout = (change: (layout: { [key: string]: unknown }) => void) => changed("minigpt4", change, "layout.json");
  await messageOf(() => load(layout((l) => (l.beam = 1))), "layout.json: beam not handled here; known: model_type, vision");
  await messageOf(
    () => load(layout((l) => (l.language_model = "../llama"))),
    'language_model is "../llama"; expected the name of a folder',
  );
  await messageOf(
    () => load(layout((l) => (l.vision = { file: "/etc/passwd" }))),
    'vision.file is "/etc/passwd"; expected the name of a weight file',
  );
  await messageOf(() => load(layout((l) => ((l.qformer as { file: string }).file = "gone.pth"))), "gone.pth");
  await messageOf(
    () => load(layout((l) => ((l.vision as { hidden_size: number }).hidden_size = 48))),
    "wrong shape vision.embeddings.class_embedding: file [1,1,32], config [1,1,48]",
  );
});
