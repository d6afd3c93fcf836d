/** What the bench prepares for its sides, and what it says where a side lacks something. */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";

import { join } from "node:path";
import { test } from "node:test";
import { readPicture } from "vitrine/image/picture";
import { loadImageProcessor } from "vitrine/image/processor";
import { messageOf } from "../support/close";
import { checkGpu } from "./device";
import { filePaths, filesFolder, makeFiles, scene } from "./files";
import { openOnnx, runOnnx } from "./onnx-side";
import { CHECKPOINT } from "./work";
import { scratch } from "../support/scratch";

const never = new AbortController().signal;
const folder = (): string => scratch();
const silent = (): void => {};

/** A command that answers with these words, whatever it is asked. */
function python(words: string): string {
  const path = join(folder(), "python");
  writeFileSync(path, `#!/bin/sh\necho '${words}'\n`, { mode: 0o755 });
  return path;
}

test("scene() is the same for the same seed, and another for another", () => {
  const one = scene(3);
  assert.equal(one.length, 640 * 480 * 3);
  assert.deepEqual(scene(3), one);
  assert.notDeepEqual(scene(4), one);
  const mean = one.reduce((sum, value) => sum + value, 0) / one.length;
  assert.ok(mean > 90 && mean < 165, `mean ${mean}`);
});

test("makeFiles() writes photo-sized JPEGs once, and the file by which both sides prepare them", async () => {
  const root = folder();
  mkdirSync(join(root, CHECKPOINT));
  writeFileSync(join(root, CHECKPOINT, "config.json"), '{"model_type":"clip"}');
  const said: string[] = [];
  await makeFiles(root, never, (line) => said.push(line), 3);
  assert.equal(said.length, 1);
  assert.deepEqual(readdirSync(filesFolder(root)), ["0000.jpg", "0001.jpg", "0002.jpg"]);
  const bytes = filePaths(root, 3).map((path) => readFileSync(path));
  for (const one of bytes) assert.ok(one.length > 30_000 && one.length < 200_000, `${one.length} bytes`);
  const { width, height } = await readPicture(filePaths(root, 3)[2]);
  assert.deepEqual([width, height], [640, 480]);
  assert.deepEqual(loadImageProcessor(join(root, CHECKPOINT)).size, { width: 224, height: 224 });
  await makeFiles(root, never, (line) => said.push(line), 3);
  assert.equal(said.length, 1);
  assert.deepEqual(readdirSync(root).sort(), [CHECKPOINT, "embed-files"]);
});

test("makeFiles() that is stopped leaves nothing behind", async () => {
  const root = folder();
  mkdirSync(join(root, CHECKPOINT));
  await assert.rejects(makeFiles(root, AbortSignal.abort(new Error("stopped")), silent, 3), /stopped/);
  assert.deepEqual(readdirSync(root), [CHECKPOINT]);
});

test("checkGpu() names each side without a GPU", async () => {
  const [cpu, gpu] = [
    async () => ({ device: "cpu", why: "TensorFlow on the CPU" }) as const,
    async () => ({ device: "gpu", why: "" }) as const,
  ];
  const [without, with_] = [python('{"found":false,"torch":"2.11.0+cpu"}'), python('{"found":true,"torch":"2.11.0"}')];
  await messageOf(
    () => checkGpu(cpu, without, never),
    "no GPU on either side:",
    "ours computes with TensorFlow on the CPU",
    "VITRINE_DEVICE=gpu npm run setup",
    "torch 2.11.0+cpu finds no CUDA device",
  );
  const one = await messageOf(() => checkGpu(gpu, without, never), "no GPU on one side:");
  assert.doesNotMatch(one, /ours/);
  await messageOf(() => checkGpu(cpu, undefined, never), "no GPU on one side:");
  await checkGpu(gpu, with_, never);
});

/** A folder with a package of that name which answers at once. */
function fakeOnnx(): string {
  const root = folder();
  const place = join(root, "node_modules", "onnxruntime-node");
  mkdirSync(place, { recursive: true });
  writeFileSync(join(place, "package.json"), '{"name":"onnxruntime-node","version":"9.8.7","main":"index.js"}');
  writeFileSync(
    join(place, "index.js"),
    `exports.Tensor = class { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } };
     exports.InferenceSession = { create: async (path, { intraOpNumThreads }) => ({ run: async ({ x }) => {
       if (!path.endsWith(".onnx") || intraOpNumThreads !== 2 || x.data.length !== x.dims.reduce((a, b) => a * b)) throw new Error("not so");
       await new Promise((resolve) => setTimeout(resolve, 5));
       return { y: { dispose() {} } };
     } }) };`,
  );
  return root;
}

test("openOnnx() finds the package from the folder, or says how to get it there", async () => {
  const none = folder();
  await messageOf(
    () => openOnnx(none, "ckpt", "python3", never, silent),
    `--onnx ${none}: there is no onnxruntime-node in its node_modules`,
    `npm install --ignore-scripts --prefix ${none} onnxruntime-node`,
  );
  const root = fakeOnnx();
  await messageOf(
    () => openOnnx(root, "ckpt", python('{"missing":["onnx"]}'), never, silent),
    "holds no clip-image.onnx and clip-text.onnx",
    "it lacks onnx",
    join("ckpt", CHECKPOINT),
  );
  for (const name of ["clip-image.onnx", "clip-text.onnx"]) writeFileSync(join(root, name), "");
  const peer = await openOnnx(root, "ckpt", "/no/such/python", never, silent);
  assert.equal(peer.version, "9.8.7");
  for (const [workload, unit, items] of [
    ["clip-image", "images/s", 32],
    ["clip-text", "texts/s", 64],
  ] as const) {
    const result = await runOnnx(peer, workload, 3, 2, never);
    assert.deepEqual([result.workload, result.dtype, result.unit, result.seconds.length], [workload, "float32", unit, 3]);
    const middle = [...result.seconds].sort((a, b) => a - b)[1];
    assert.ok(Math.abs(result.rate * middle - items) < 1e-6);
    assert.ok(result.peak_rss_mb > 20);
  }
});
