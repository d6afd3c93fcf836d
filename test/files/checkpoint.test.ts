import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { mock, test } from "node:test";
import { openCheckpoint } from "vitrine/files/checkpoint";
import { toFloat32 } from "vitrine/files/dtype";
import { openSafetensors, saveSafetensors } from "vitrine/files/safetensors";
import { message, oracle, scratch } from "./helpers";

/** A folder with these shards, each a list of tensor names, and this index. */
async function sharded(shards: Record<string, string[]>, map: Record<string, unknown>, config = "{}"): Promise<string> {
  const folder = fs.mkdtempSync(path.join(scratch, "checkpoint-"));
  for (const [file, names] of Object.entries(shards))
    await saveSafetensors(
      path.join(folder, file),
      names.map((name) => ({ name, dtype: "U8", shape: [1], data: Uint8Array.of(name.charCodeAt(0)) })),
    );
  fs.writeFileSync(path.join(folder, "model.safetensors.index.json"), JSON.stringify({ metadata: {}, weight_map: map }));
  fs.writeFileSync(path.join(folder, "config.json"), config);
  return folder;
}

const [A, B] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

test("openCheckpoint() joins the oracle's four shards as its index says", () => {
  const folder = path.join(oracle, "blip2_opt", "model");
  const { weight_map } = JSON.parse(fs.readFileSync(path.join(folder, "model.safetensors.index.json"), "utf8"));
  const { tensors, config, close } = openCheckpoint(folder);
  assert.equal(config.model_type, "blip-2");
  assert.deepEqual([...tensors.keys()], Object.keys(weight_map));
  for (const [name, shard] of Object.entries(weight_map)) assert.ok(tensors.get(name)?.file.endsWith(String(shard)));
  close();
});

test("openCheckpoint() reads pytorch_model.bin, alone and in shards, with the numbers of PyTorch", () => {
  const source = path.join(oracle, "checkpoints", "pickle");
  const want = openSafetensors(path.join(oracle, "checkpoints", "arrays.safetensors"));
  const shards = fs.readdirSync(source).filter((name) => /-of-|index/.test(name));
  for (const files of [["pytorch_model.bin"], shards]) {
    const folder = fs.mkdtempSync(path.join(scratch, "bin-"));
    for (const name of ["config.json", ...files]) fs.copyFileSync(path.join(source, name), path.join(folder, name));
    const { tensors, close } = openCheckpoint(folder);
    assert.equal(tensors.size, 46);
    for (const [name, tensor] of tensors)
      assert.deepEqual(toFloat32(tensor), toFloat32(want.tensors.get(`pickle.${name}`) ?? assert.fail(name)));
    close();
    assert.match(
      message(() => tensors.get("logit_scale")?.read()),
      /was closed/,
    );
  }
  want.close();
});

test("openCheckpoint() refuses shards outside the folder, by name", async () => {
  for (const shard of ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "C:\\x.safetensors", "..", "x.py", 7, null]) {
    const folder = await sharded({ [A]: ["a"] }, { a: A, bad: shard });
    assert.match(
      message(() => openCheckpoint(folder)),
      /index\.json and its shards do not fit together:\n {2}"bad" points at /,
      String(shard),
    );
  }
});

test("openCheckpoint() names missing and extra shards", async () => {
  const folder = await sharded({ [A]: ["a"], "model-00003-of-00003.safetensors": ["x"] }, { a: A, b: B });
  const text = message(() => openCheckpoint(folder));
  assert.match(text, /shard model-00002-of-00002\.safetensors is missing/);
  assert.match(text, /shard model-00003-of-00003\.safetensors is in the folder, but not in the index/);
});

test("openCheckpoint() names every tensor that is absent, double or unknown, at once", async () => {
  const folder = await sharded({ [A]: ["a", "d", "u"], [B]: ["b", "d"] }, { a: A, b: B, d: A, gone: A, lost: B });
  const text = message(() => openCheckpoint(folder));
  assert.match(text, /"d" stands in several shards: model-00001-of-00002\.safetensors, model-00002-of-00002\.safetensors/);
  assert.match(text, /"u" stands in model-00001-of-00002\.safetensors, but not in the index/);
  assert.match(text, /"gone" should stand in model-00001-of-00002\.safetensors, but does not/);
  assert.match(text, /"lost" should stand in model-00002/);
  assert.equal(text.split("\n").length, 5);
});

test("openCheckpoint() passes on which shard is damaged, and closes the others", async () => {
  const folder = await sharded({ [A]: ["a"], [B]: ["b"] }, { a: A, b: B });
  fs.truncateSync(path.join(folder, B), 20);
  const open = () => fs.readdirSync("/proc/self/fd").length;
  const before = process.platform === "linux" ? open() : 0;
  for (let i = 0; i < 5; i++)
    assert.match(
      message(() => openCheckpoint(folder)),
      /model-00002-of-00002\.safetensors is cut off/,
    );
  if (process.platform === "linux") assert.equal(open(), before);
});

test("openCheckpoint() says what a folder lacks, and where its JSON breaks", async () => {
  const folder = fs.mkdtempSync(path.join(scratch, "lacks-"));
  assert.match(
    message(() => openCheckpoint(path.join(folder, "none"))),
    /none does not exist/,
  );
  assert.match(
    message(() => openCheckpoint(folder)),
    /config\.json is missing\. It holds nothing\./,
  );
  fs.writeFileSync(path.join(folder, "config.json"), '{\n  "model_type": "clip",\n}');
  fs.writeFileSync(path.join(folder, "notes.txt"), "");
  assert.match(
    message(() => openCheckpoint(folder)),
    /config\.json:3:1: expected a text in double quotes, got "\}"/,
  );
  fs.writeFileSync(path.join(folder, "config.json"), "{}");
  assert.match(
    message(() => openCheckpoint(folder)),
    /has no weights: expected model\.safetensors or .*; it holds config\.json, notes\.txt/,
  );
  assert.match(
    message(() => openCheckpoint(path.join(folder, "config.json"))),
    /is a file; expected the folder/,
  );
  const bad = await sharded({ [A]: ["a"] }, { a: A });
  fs.writeFileSync(path.join(bad, "model.safetensors.index.json"), "{}");
  assert.match(
    message(() => openCheckpoint(bad)),
    /"weight_map" is missing/,
  );
});

test("openCheckpoint() ignores code that config.json names, and says so", async () => {
  const warned = mock.method(console, "warn", () => {});
  const folder = await sharded({ [A]: ["a"] }, { a: A }, '{"auto_map": {"AutoModel": "modeling_x.X"}}');
  openCheckpoint(folder).close();
  warned.mock.restore();
  assert.match(String(warned.mock.calls[0]?.arguments[0]), /config\.json names code to run \(auto_map: modeling_x\.X\)\. It is ignored/);
});
