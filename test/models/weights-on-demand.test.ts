import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { isDeferred } from "vitrine/engine/deferred";
import { readsFiles } from "vitrine/engine/from-file";
import { fromFloat32, openSafetensors, saveSafetensors, toFloat32 } from "vitrine/files/safetensors";
import { load } from "vitrine/models";
import { saveModel } from "vitrine/models/save";
import { follow, leaves, weightValues } from "vitrine/nn/spec";
import { inputs, logits, MODEL, modelWith, scratch } from "../support/clip";
import { expectSame, keepsTensorCount } from "../support/close";

const ROOT = join(__dirname, "..", "..");
const DTYPES = ["float32", "bfloat16"] as const;

before(() => engine().then(() => assert.ok(readsFiles())));

const copy = (): string => modelWith(() => {});
const waiting = ({ spec, params }: { spec: unknown; params: unknown }): number =>
  leaves(spec).filter(({ path }) => isDeferred(follow(params, path) as tf.Tensor)).length;
const openFiles = (folder: string): number =>
  fs.readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith(folder);
    } catch {
      return false; // the descriptor that listed them
    }
  }).length;

test("load() reads no weight; a text reads the text's weights, a picture the rest", async () => {
  const x = inputs();
  for (const dtype of DTYPES)
    await keepsTensorCount(async () => {
      const model = await load(MODEL, { dtype });
      const all = leaves(model.spec).length;
      assert.equal(waiting(model), all);
      model.encodeText(x.ids, x.mask).dispose();
      assert.equal(waiting(model), leaves({ ...(model.spec as object), text: undefined }).length);
      model.encodeImage(x.pixels).dispose();
      assert.equal(waiting(model), 1, "the scale of the logits");
      model.dispose();
    });
  tf.dispose(x);
});

test("tf.memory() counts a weight's bytes whether they were read or not", async () => {
  const start = tf.memory().numBytes;
  const model = await load(MODEL);
  const loaded = tf.memory().numBytes - start;
  const parameters = leaves(model.spec).reduce((sum, { spec }) => sum + spec.shape.reduce((a, b) => a * b, 1), 0);
  assert.equal(loaded, 4 * parameters);
  for await (const _ of weightValues(model.spec, model.params));
  assert.equal(tf.memory().numBytes - start, loaded);
  model.dispose();
  assert.equal(tf.memory().numBytes, start);
});

test("a model outlives its files: removed, replaced, or in shards of which one goes", async () => {
  const x = inputs();
  const sharded = copy();
  const whole = openSafetensors(join(sharded, "model.safetensors"));
  const names = [...whole.tensors.keys()];
  const weight_map: { [name: string]: string } = {};
  for (const part of [1, 2]) {
    const file = `model-0000${part}-of-00002.safetensors`;
    const mine = names.filter((_, i) => i % 2 === part - 1);
    for (const name of mine) weight_map[name] = file;
    await saveSafetensors(
      join(sharded, file),
      mine.map((name) => ({
        name,
        dtype: "F32",
        shape: whole.tensors.get(name)!.shape,
        data: fromFloat32(toFloat32(whole.tensors.get(name)!), "F32"),
      })),
    );
  }
  whole.close();
  fs.writeFileSync(join(sharded, "model.safetensors.index.json"), JSON.stringify({ metadata: {}, weight_map }));
  fs.rmSync(join(sharded, "model.safetensors"));
  for (const dtype of DTYPES) {
    const reference = await load(MODEL, { dtype });
    const expected = logits(reference, x);
    reference.dispose();
    const [removed, replaced] = [copy(), copy()];
    const models = await Promise.all([removed, replaced, sharded].map((folder) => load(folder, { dtype })));
    fs.rmSync(removed, { recursive: true });
    fs.writeFileSync(join(replaced, "new"), "no weights");
    fs.renameSync(join(replaced, "new"), join(replaced, "model.safetensors"));
    fs.renameSync(join(sharded, "model-00002-of-00002.safetensors"), join(sharded, "moved"));
    for (const model of models) expectSame(logits(model, x), expected, `${model.folder} ${dtype}`);
    for (const model of models) model.dispose();
    fs.renameSync(join(sharded, "moved"), join(sharded, "model-00002-of-00002.safetensors"));
    assert.equal(openFiles(sharded), 0, "dispose() closes the files");
  }
  tf.dispose(x);
});

test("a model can be saved onto the very file that it was loaded from, before it was used", async () => {
  const x = inputs();
  const reference = await load(MODEL);
  const expected = logits(reference, x);
  reference.dispose();
  const folder = copy();
  const model = await load(folder);
  await saveModel(model, folder);
  expectSame(logits(model, x), expected, "the model in memory");
  const again = await load(folder);
  expectSame(logits(again, x), expected, "the model in the file");
  for (const one of [model, again]) one.dispose();
  tf.dispose(x);
});

test(
  "a checkpoint takes the memory of its weights and a tenth, in its own dtype or narrowed from float32",
  { skip: process.platform !== "linux" },
  () => {
    // 512 MB of bfloat16 weights, in sparse files: no disk is used.
    const [rows, width, count] = [8192, 4096, 8];
    const code = `
    const { engine, tf } = require("vitrine/engine");
    const { openSafetensors } = require("vitrine/files/safetensors");
    const { loadWeights, weight } = require("vitrine/nn/spec");
    const { linear } = require("vitrine/nn/layers");
    engine().then(() => {
      const file = openSafetensors(process.argv[1]);
      const spec = Array.from({ length: ${count} }, (_, i) => ({ weight: weight("w" + i, [${rows}, ${width}]) }));
      const params = loadWeights(spec, file.tensors, { dtype: "bfloat16", where: "x" });
      file.close();
      const x = tf.ones([1, ${width}]);
      for (const layer of params) tf.tidy(() => linear(layer, x).dataSync());
      console.log(process.resourceUsage().maxRSS / 1024);
    });`;
    const peaks = (["BF16", "F32"] as const).map((dtype) => {
      const bytes = rows * width * (dtype === "F32" ? 4 : 2);
      const header = Object.fromEntries(
        Array.from({ length: count }, (_, i) => [`w${i}`, { dtype, shape: [rows, width], data_offsets: [i * bytes, (i + 1) * bytes] }]),
      );
      const text = Buffer.from(JSON.stringify(header));
      const path = join(scratch(), "large.safetensors");
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(text.length));
      fs.writeFileSync(path, Buffer.concat([length, text]));
      fs.truncateSync(path, 8 + text.length + count * bytes);
      const { status, stdout, stderr } = spawnSync(process.execPath, ["-e", code, path], { cwd: ROOT, encoding: "utf8" });
      assert.equal(status, 0, stderr);
      return Number(stdout);
    });
    const megabytes = (rows * width * 2 * count) / 2 ** 20;
    // Start-up itself peaks at some 360 MB, most of which is given back before the first weight is read.
    for (const peak of peaks) assert.ok(peak < 1.1 * megabytes + 250, `${peaks} MB for ${megabytes} MB of weights`);
  },
);
