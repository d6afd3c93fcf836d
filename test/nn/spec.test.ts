import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { isBfloat16, toFloat32 as widen } from "vitrine/engine/bfloat16";
import { engine, tf } from "vitrine/engine";
import { fromFloat32, openSafetensors, saveSafetensors, toFloat32 } from "vitrine/files/safetensors";
import { load } from "vitrine/models";
import { disposeParams, follow, leaves, loadWeights, mapLeaves, matrix, patchKernel, repeat, w, weightValues } from "vitrine/nn/spec";
import { MODEL, scratch } from "../support/clip";
import { expectSame, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const spec = () => ({
  scale: w("scale", []),
  patch: { weight: patchKernel("patch.weight", [2, 3, 2]) },
  blocks: repeat(2, (i) => ({ weight: matrix(`blocks.${i}.weight`, [2, 3]), bias: w(`blocks.${i}.bias`, [2]) })),
});

/** A file with these tensors, counted up from 0. */
async function fileOf(shapes: { [name: string]: number[] }) {
  const path = join(scratch(), "x.safetensors");
  let next = 0;
  const values = (shape: number[]) => Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => next++ / 8);
  await saveSafetensors(
    path,
    Object.entries(shapes).map(([name, shape]) => ({ name, dtype: "F32" as const, shape, data: fromFloat32(values(shape), "F32") })),
  );
  return openSafetensors(path);
}

const GOOD = {
  scale: [],
  "patch.weight": [2, 3, 2, 2],
  "blocks.0.weight": [2, 3],
  "blocks.0.bias": [2],
  "blocks.1.weight": [2, 3],
  "blocks.1.bias": [2],
};

test("leaves(), follow() and mapLeaves() walk a spec in order", () => {
  const all = leaves(spec());
  assert.deepEqual(
    all.map((leaf) => leaf.spec.name),
    Object.keys(GOOD),
  );
  assert.deepEqual(all[4].path, ["blocks", 1, "weight"]);
  const names = mapLeaves(spec(), (leaf) => leaf.name);
  for (const { spec: leaf, path } of all) assert.equal(follow(names, path), leaf.name);
  assert.equal(follow(names, ["blocks", 7, "weight"]), undefined);
});

test("loadWeights() reads each tensor under its name, with the shape it has in memory", async () => {
  const file = await fileOf(GOOD);
  await keepsTensorCount(async () => {
    const params = loadWeights(spec(), file.tensors, { where: "x" });
    assert.deepEqual(params.patch.weight.shape, [2, 12]);
    assert.deepEqual(params.scale.shape, []);
    for (const { spec: leaf, path } of leaves(spec()))
      expectSame((follow(params, path) as tf.Tensor).dataSync(), toFloat32(file.tensors.get(leaf.name)!), leaf.name);
    const back: { name: string; shape: number[] }[] = [];
    for await (const one of weightValues(spec(), params)) back.push(one);
    assert.deepEqual(Object.fromEntries(back.map(({ name, shape }) => [name, shape])), GOOD, "weightValues() gives the shapes of the file");
    disposeParams(spec(), params);
  });
  file.close();
});

test("loadWeights() in bfloat16 narrows matrices and nothing else", async () => {
  const file = await fileOf(GOOD);
  const params = loadWeights(spec(), file.tensors, { where: "x", dtype: "bfloat16" });
  for (const { spec: leaf, path } of leaves(spec())) {
    const x = follow(params, path) as tf.Tensor;
    assert.equal(isBfloat16(x), leaf.name.endsWith("weight"), leaf.name);
    expectSame(
      tf.tidy(() => widen(x).dataSync()),
      toFloat32(file.tensors.get(leaf.name)!),
      "eighths below 32 have room in 8 bits",
    );
  }
  disposeParams(spec(), params);
  file.close();
});

test("loadWeights() lists missing, misshapen and unexpected tensors at once, and makes none", async () => {
  const file = await fileOf({
    ...GOOD,
    "blocks.1.bias": [3],
    "patch.weight": [2, 12],
    extra: [1],
    position_ids: [1, 5],
    "blocks.0.weight": [3, 2],
  });
  file.tensors.delete("scale");
  await keepsTensorCount(async () => {
    const message = await messageOf(
      () => loadWeights(spec(), file.tensors, { where: "models/tiny", ignore: /position_ids$/ }),
      "models/tiny does not fit this model (5 misfits, 6 tensors expected):",
      /missing +scale \[\]/,
      /wrong shape blocks\.1\.bias: file \[3\], config \[2\]/,
      /wrong shape patch\.weight: file \[2,12\], config \[2,3,2,2\]/,
      /wrong shape blocks\.0\.weight: file \[3,2\], config \[2,3\]/,
      /unexpected +extra \[1\]/,
    );
    assert.doesNotMatch(message, /position_ids|blocks\.1\.weight/);
  });
  file.close();
});

test("loadWeights() cuts a list of hundreds and says how many more", async () => {
  const many = repeat(50, (i) => w(`layer.${i}.weight`, [1]));
  await messageOf(
    () => loadWeights(many, new Map(), { where: "x" }),
    "50 misfits, 50 tensors expected",
    "layer.39.weight",
    "… and 10 more",
  );
});

test("load() and dispose() leave no tensor, in either dtype", async () => {
  for (const dtype of ["float32", "bfloat16"] as const) await keepsTensorCount(async () => (await load(MODEL, { dtype })).dispose());
});
