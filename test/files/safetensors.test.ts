import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { DTYPE_BYTES, type Dtype } from "vitrine/files/dtype";
import { openSafetensors, saveSafetensors, toFloat32 } from "vitrine/files/safetensors";
import { accepted, rejected, rejectedByUsAlone, safetensors } from "./headers";
import { bytes, file, message, messageOf, oracle, scratch, u64 } from "./helpers";

for (const { name, content, says } of [...rejected, ...rejectedByUsAlone])
  test(`openSafetensors() refuses: ${name}`, () => {
    const place = file(content, ".safetensors");
    const start = performance.now();
    const text = message(() => openSafetensors(place));
    const time = performance.now() - start;
    assert.match(text, says);
    assert.ok(text.includes(place), `names the file: ${text}`);
    assert.ok(time < 50, `took ${time} ms`);
  });

for (const { name, content, names } of accepted)
  test(`openSafetensors() accepts: ${name}`, () => {
    const opened = openSafetensors(file(content, ".safetensors"));
    assert.deepEqual([...opened.tensors.keys()], names);
    opened.close();
  });

test("openSafetensors() keeps tensors called __proto__ and constructor as plain names", () => {
  const header = `{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"constructor":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`;
  const { tensors, close } = openSafetensors(file(bytes(u64(header.length), header, [7, 9]), ".safetensors"));
  assert.deepEqual([...(tensors.get("__proto__")?.read() ?? [])], [7]);
  assert.deepEqual([...(tensors.get("constructor")?.read() ?? [])], [9]);
  assert.deepEqual(Object.keys(Object.prototype), []);
  close();
});

test("openSafetensors() lists every tensor that does not fit", () => {
  const entry = (name: string, dtype: string) => `"${name}":{"dtype":"${dtype}","shape":[2],"data_offsets":[0,4]}`;
  const text = message(() => openSafetensors(file(safetensors(`{${entry("a", "F99")},${entry("b", "F32")},${entry("c", "F16")}}`, 4))));
  assert.match(text, /"a": dtype "F99"/);
  assert.match(text, /"b": F32 \[2\] needs 8 bytes/);
  assert.doesNotMatch(text, /"c"/);
});

test("openSafetensors() refuses millions of overlapping entries early", () => {
  const entries = Array.from({ length: 200_000 }, (_, i) => `"${i}":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}`);
  assert.match(
    message(() => openSafetensors(file(safetensors(`{${entries}}`, 9)))),
    /tensor "1": the tensors up to here need 18 bytes, the file has 9/,
  );
});

test("openSafetensors() survives any bytes: an error or tensors that can be read", () => {
  const content = rejected
    .concat(rejectedByUsAlone)
    .map((c) => c.content)
    .concat(accepted.map((c) => c.content));
  const mutated = fc
    .record({
      base: fc.constantFrom(...content),
      edits: fc.array(fc.record({ at: fc.nat(), to: fc.nat(255) }), { maxLength: 4 }),
      cut: fc.nat(),
    })
    .map(({ base, edits, cut }) => {
      const copy = Buffer.from(base);
      for (const { at, to } of edits) if (copy.length) copy[at % copy.length] = to;
      return cut % 3 ? copy : copy.subarray(0, cut % (copy.length + 1));
    });
  const place = path.join(scratch, "fuzz.safetensors");
  let opened = 0;
  fc.assert(
    fc.property(mutated, (content) => {
      fs.writeFileSync(place, content);
      try {
        const { tensors, close } = openSafetensors(place);
        opened++;
        for (const tensor of tensors.values()) assert.equal(tensor.read().length, tensor.byteLength);
        close();
      } catch (error) {
        assert.ok((error as Error).message.includes(place), String(error));
      }
    }),
    { numRuns: 3000 },
  );
  assert.ok(opened > 50, `the fuzz also met good files (${opened})`);
});

const dtypes = Object.keys(DTYPE_BYTES) as Dtype[];

test("saveSafetensors() then openSafetensors() gives back names, dtypes, shapes, bytes and metadata", async () => {
  const tensor = fc
    .record({ dtype: fc.constantFrom(...dtypes), shape: fc.array(fc.nat(4), { maxLength: 4 }), lazy: fc.boolean() })
    .chain(({ dtype, shape, lazy }) => {
      const size = shape.reduce((a, b) => a * b, DTYPE_BYTES[dtype]);
      return fc.uint8Array({ minLength: size, maxLength: size }).map((data) => ({ dtype, shape, data, lazy }));
    });
  const name = fc
    .oneof(fc.string({ unit: "grapheme" }), fc.constantFrom("__proto__", "constructor", "a.b", ""))
    .filter((n) => n !== "__metadata__");
  const model = fc.dictionary(name, tensor, { maxKeys: 8, noNullPrototype: false });
  const metadata = fc.dictionary(fc.string(), fc.string(), { maxKeys: 3, noNullPrototype: true });
  const place = path.join(scratch, "round.safetensors");
  await fc.assert(
    fc.asyncProperty(model, metadata, async (tensors, notes) => {
      const list = Object.entries(tensors).map(([name, t]) => ({ ...t, name, data: t.lazy ? () => t.data : t.data }));
      await saveSafetensors(place, list, notes);
      const opened = openSafetensors(place);
      assert.equal(opened.tensors.size, list.length);
      assert.deepEqual(new Map(Object.entries(notes)), opened.metadata);
      for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
        const got = opened.tensors.get(name);
        assert.deepEqual([got?.name, got?.dtype, got?.shape, got?.byteLength], [name, dtype, shape, data.length]);
        assert.deepEqual(Buffer.from(got?.read() ?? []), Buffer.from(data));
      }
      opened.close();
    }),
    { numRuns: 150 },
  );
});

test("saveSafetensors() aligns every tensor to its element and puts format=pt by default", async () => {
  const place = path.join(scratch, "aligned.safetensors");
  const tensors = dtypes.map((dtype) => ({ name: dtype, dtype, shape: [3], data: new Uint8Array(3 * DTYPE_BYTES[dtype]) }));
  await saveSafetensors(place, tensors);
  const content = fs.readFileSync(place);
  const start = 8 + Number(content.readBigUInt64LE(0));
  const header = JSON.parse(content.subarray(8, start).toString());
  assert.equal(start % 8, 0);
  assert.deepEqual(header.__metadata__, { format: "pt" });
  for (const dtype of dtypes) assert.equal((start + header[dtype].data_offsets[0]) % DTYPE_BYTES[dtype], 0, dtype);
});

test("saveSafetensors() puts tensors of a multiple of 64 bytes at multiples of 64, whatever else is in the file", async () => {
  const place = path.join(scratch, "even.safetensors");
  const of = (name: string, dtype: Dtype, count: number) => ({
    name,
    dtype,
    shape: [count],
    data: new Uint8Array(count * DTYPE_BYTES[dtype]),
  });
  await saveSafetensors(place, [of("a", "F32", 1), of("b", "BF16", 96), of("c", "I64", 3), of("d", "F32", 16), of("e", "U8", 0)]);
  const opened = openSafetensors(place);
  const places = Object.fromEntries([...opened.tensors].map(([name, source]) => [name, source.hold!().offset % 64]));
  assert.deepEqual(places, { d: 0, b: 0, e: 0, c: 0, a: 24 });
  opened.close();
});

test("saveSafetensors() refuses what does not fit, lists it, and leaves the old file and no other", async () => {
  const folder = fs.mkdtempSync(path.join(scratch, "save-"));
  const place = path.join(folder, "model.safetensors");
  fs.writeFileSync(place, "old");
  const t = (name: string, data: Uint8Array | (() => Uint8Array)) => ({ name, dtype: "F32" as const, shape: [2], data });
  const ok = new Uint8Array(8);
  const text = await messageOf(saveSafetensors(place, [t("a", ok), t("a", ok), t("b", new Uint8Array(7)), t("__metadata__", ok)]));
  assert.match(text, /"a": two tensors have this name/);
  assert.match(text, /"b": F32 \[2\] needs 8 bytes, its data has 7/);
  assert.match(text, /"__metadata__": reserved name/);
  assert.match(
    await messageOf(saveSafetensors(place, [t("a", ok), t("late", () => new Uint8Array(9))])),
    /"late": F32 \[2\] needs 8 bytes, its data has 9/,
  );
  assert.match(await messageOf(saveSafetensors(place, [{ ...t("a", ok), shape: [1.5] }])), /shape \[1\.5\] holds 1\.5/);
  assert.match(await messageOf(saveSafetensors(place, [{ ...t("a", ok), dtype: "F8" as Dtype }])), /dtype "F8", expected one of/);
  assert.equal(fs.readFileSync(place, "utf8"), "old");
  assert.deepEqual(fs.readdirSync(folder), ["model.safetensors"]);
});

test("TensorSource.read() refuses a file that was truncated, rewritten, replaced, removed or closed meanwhile", () => {
  const content = safetensors('{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8);
  const damages: [string, (place: string) => void, RegExp][] = [
    ["truncated", (p) => fs.truncateSync(p, content.length - 4), /changed while it was open/],
    ["rewritten", (p) => fs.utimesSync(p, 1, 1), /changed while it was open/],
    ["replaced", (p) => fs.renameSync(file(content), p), /changed while it was open/],
    ["removed", (p) => fs.rmSync(p), /was removed while it was open/],
  ];
  for (const [name, damage, says] of damages) {
    const place = file(content, ".safetensors");
    const { tensors, close } = openSafetensors(place);
    const read = () => tensors.get("x")?.read();
    assert.equal(read()?.length, 8);
    damage(place);
    assert.match(message(read), says, name);
    assert.ok(message(read).includes(place));
    close();
    assert.match(message(read), /was closed/);
  }
});

test("openSafetensors() reads a sparse 5 GB file by parts, within 200 MB of memory", () => {
  const place = path.join(scratch, "sparse.safetensors");
  const big = 5 * 2 ** 30;
  const header = `{"big":{"dtype":"U8","shape":[${big}],"data_offsets":[0,${big}]},"last":{"dtype":"U8","shape":[4],"data_offsets":[${big},${big + 4}]}}`;
  fs.writeFileSync(place, bytes(u64(header.length), header));
  fs.truncateSync(place, 8 + header.length + big);
  fs.appendFileSync(place, Buffer.from([1, 2, 3, 4]));
  const script = `const { openSafetensors } = require("vitrine/files/safetensors");
    const { tensors } = openSafetensors(${JSON.stringify(place)});
    console.log(JSON.stringify([...tensors.get("last").read()]), process.memoryUsage().rss / 2 ** 20);`;
  const [last, rss] = execFileSync(process.execPath, ["-e", script], { cwd: __dirname, encoding: "utf8" }).trim().split(" ");
  fs.rmSync(place);
  assert.equal(last, "[1,2,3,4]");
  assert.ok(Number(rss) < 200, `${rss} MB`);
});

test("openSafetensors() reads the oracle's CLIP", () => {
  const { tensors, metadata, close } = openSafetensors(path.join(oracle, "clip", "model", "model.safetensors"));
  const text = tensors.get("text_model.embeddings.token_embedding.weight");
  assert.equal(metadata.get("format"), "pt");
  assert.equal(text?.shape.length, 2);
  assert.ok(text && toFloat32(text).some((x) => x !== 0));
  close();
});

test("openSafetensors() says what is wrong with a path", () => {
  assert.match(
    message(() => openSafetensors(path.join(scratch, "none"))),
    /none does not exist/,
  );
  assert.match(
    message(() => openSafetensors(scratch)),
    /is not a file/,
  );
});
