import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { type TensorSource, toFloat32 } from "vitrine/files/dtype";
import { openSafetensors } from "vitrine/files/safetensors";
import { openTorch } from "vitrine/files/torch";
import { members, P, storage, tensor, torchZip, zip } from "./archives";
import { bytes, file, message, oracle, scratch } from "./helpers";

const folder = path.join(oracle, "checkpoints");
const cases = JSON.parse(fs.readFileSync(path.join(folder, "cases.json"), "utf8")).pickle as {
  name: string;
  state: Record<string, string>;
  tensors: Record<string, string>;
  plain: object;
}[];
const arrays = openSafetensors(path.join(folder, "arrays.safetensors")).tensors;
const pickle = (name: string) => path.join(folder, "pickle", name);
const found = <T>(x: T | undefined): T => (x === undefined ? assert.fail("missing") : x);

/** Largest difference from PyTorch's array; shapes must be equal. */
function difference(got: TensorSource, name: string): number {
  const want = found(arrays.get(name));
  assert.deepEqual(got.shape, want.shape, name);
  const [a, b] = [toFloat32(got), toFloat32(want)];
  assert.equal(a.length, b.length);
  return a.reduce((worst, x, i) => Math.max(worst, Math.abs(x - b[i]) / Math.max(1, Math.abs(b[i]))), 0);
}

test("openTorch() reads PyTorch's state dict, zip and pre-1.6, bit for bit; half precision within its rounding", () => {
  const bounds = {
    "pytorch_model.bin": 0,
    "pytorch_model_pre16.bin": 0,
    "pytorch_model_fp16.bin": 2 ** -11,
    "pytorch_model_bf16.bin": 2 ** -8,
  };
  for (const [name, bound] of Object.entries(bounds)) {
    const { tensors, close } = openTorch(pickle(name));
    const { state } = found(cases.find((c) => c.name === "clip"));
    assert.deepEqual([...tensors.keys()].sort(), Object.keys(state).sort(), name);
    for (const [key, array] of Object.entries(state)) assert.ok(difference(found(tensors.get(key)), array) <= bound, `${name}: ${key}`);
    close();
  }
});

test("openTorch() reads views, shared storages, every dtype and plain data, zip and pre-1.6", () => {
  for (const name of ["odd.bin", "odd_pre16.bin"]) {
    const { tensors, value, close } = openTorch(pickle(name));
    const odd = found(cases.find((c) => c.name === "odd"));
    assert.deepEqual([...tensors.keys()].sort(), Object.keys(odd.tensors).sort());
    for (const [key, array] of Object.entries(odd.tensors)) assert.equal(difference(found(tensors.get(key)), array), 0, `${name}: ${key}`);
    assert.deepEqual(
      ["int64", "int32", "int16", "int8", "uint8", "bool", "float64", "half", "bf16"].map((key) => tensors.get(key)?.dtype),
      ["I64", "I32", "I16", "I8", "U8", "BOOL", "F64", "F16", "BF16"],
    );
    const plain = (value as Map<string, Map<string, unknown>>).get("plain");
    const want = odd.plain as Record<string, unknown>;
    for (const key of ["int", "negative", "float", "text", "none", "flags", "pair", "size"])
      assert.deepEqual(plain?.get(key), want[key], key);
    assert.equal(String(plain?.get("big")), want.big);
    assert.equal(Buffer.from(plain?.get("bytes") as Uint8Array).toString("hex"), want.bytes_hex);
    assert.deepEqual(Object.fromEntries(plain?.get("nested") as Map<string, unknown>), want.nested);
    close();
  }
});

test("openTorch() takes the state dict under `model`, and names the leaves of `value` by their path", () => {
  const { tensors, value, close } = openTorch(path.join(oracle, "albef", "model", "legacy_pickle.pth"));
  const model = (value as Map<string, Map<string, TensorSource>>).get("model");
  assert.equal(tensors.size, 127);
  assert.equal(model?.get("visual_encoder.cls_token")?.name, "model.visual_encoder.cls_token");
  assert.equal(tensors.get("visual_encoder.cls_token")?.name, "visual_encoder.cls_token");
  close();
});

test("openTorch() keeps a key called __proto__ as a plain key", () => {
  const { value, close } = openTorch(file(torchZip(P.whole(P.dict(P.text("__proto__"), P.dict(P.text("polluted"), P.int(1)))))));
  assert.equal((value as Map<string, Map<string, number>>).get("__proto__")?.get("polluted"), 1);
  assert.equal(({} as { polluted?: number }).polluted, undefined);
  close();
});

test("openTorch() reads strides, offsets and expanded tensors", () => {
  const read = (t: Uint8Array) => {
    const { value, close } = openTorch(file(torchZip(P.whole(t))));
    const numbers = [...toFloat32(value as TensorSource)];
    close();
    return numbers;
  };
  assert.deepEqual(read(tensor([2, 2], [2, 1])), [1, 2, 3, 4]);
  assert.deepEqual(read(tensor([2, 2], [1, 2])), [1, 3, 2, 4]);
  assert.deepEqual(read(tensor([2], [2], { offset: 1 })), [2, 4]);
  assert.deepEqual(read(tensor([2, 3], [1, 0])), [1, 1, 1, 2, 2, 2]);
  assert.deepEqual(read(tensor([], [], { offset: 3 })), [4]);
  assert.deepEqual(read(tensor([0, 5], [5, 1], { offset: 4 })), []);
});

test("openTorch() refuses tensors that reach beyond their storage, and storages beyond their entry", () => {
  const cases: [string, Uint8Array, RegExp][] = [
    ["shape", tensor([5], [1]), /shape \[5\], strides \[1\] and offset 0 reach beyond the 4 elements/],
    ["stride", tensor([2], [4]), /reach beyond/],
    ["offset", tensor([1], [1], { offset: 4 }), /reach beyond/],
    ["offset of an empty tensor", tensor([0], [1], { offset: 5 }), /reach beyond/],
    ["negative stride", tensor([2], [-1], { offset: 1 }), /strides \[-1\] .* are not as many whole numbers of 0 or more/],
    ["negative offset", tensor([2], [1], { offset: -1 }), /offset -1 are not/],
    ["negative dimension", tensor([-2], [1]), /shape \[-2\]/],
    ["strides missing", tensor([2, 2], [1]), /are not as many/],
    ["overflow", tensor([2 ** 31 - 1, 2 ** 31 - 1, 2 ** 31 - 1], [0, 0, 0]), /more elements than any file can hold/],
    ["expanded to 4 GB", tensor([2 ** 30], [0]), /would make 4294967296 bytes out of a storage of 16/],
    [
      "storage larger than its entry",
      tensor([5], [1], { on: storage("FloatStorage", "0", 5) }),
      /storage 0 should have 20 bytes, its entry has 16/,
    ],
    ["storage missing", tensor([4], [1], { on: storage("FloatStorage", "9") }), /storage 9 is missing \(no entry m\/data\/9\)/],
    ["storage climbing out", tensor([4], [1], { on: storage("FloatStorage", "../data.pkl", 1) }), /is missing/],
    ["complex", tensor([2], [1], { on: storage("ComplexFloatStorage", "0", 2) }), /dtype complex64 is not read/],
    ["no storage", P.call(P.global("torch._utils", "_rebuild_tensor_v2"), P.int(1)), /_rebuild_tensor is called with arguments/],
  ];
  for (const [name, content, says] of cases)
    assert.match(
      message(() => openTorch(file(torchZip(P.whole(P.dict(P.text("w"), content)))))),
      says,
      name,
    );
});

test("openTorch() refuses archives that are ambiguous, incomplete or no checkpoint", () => {
  const good = members(P.whole(P.dict(P.text("w"), tensor([4], [1]))));
  const change = (i: number, rest: object) => good.map((m, j) => (j === i ? { ...m, ...rest } : m));
  const open = (list: Parameters<typeof zip>[0]) => {
    const { tensors, close } = openTorch(file(zip(list)));
    try {
      return [...toFloat32(found(tensors.get("w")))];
    } finally {
      close();
    }
  };
  assert.deepEqual(open(good), [1, 2, 3, 4]);
  assert.deepEqual(open(good.map((m) => ({ ...m, method: 8 }))), [1, 2, 3, 4]);
  assert.match(
    message(() => open(change(0, { listed: { crc: 1 }, own: { crc: 1 } }))),
    /"m\/data\.pkl" is damaged/,
  );
  assert.match(
    message(() => open(change(2, { listed: { crc: 1 }, own: { crc: 1 } }))),
    /"m\/data\/0" is damaged/,
  );
  assert.match(
    message(() => open(change(0, { listed: { flags: 1 } }))),
    /flags 0x1/,
  );
  assert.match(
    message(() => open([...good, { name: "n/data.pkl", data: P.whole("N") }])),
    /several pickles: m\/data\.pkl, n\/data\.pkl/,
  );
  assert.match(
    message(() => open([...good, { name: "m/x/data.pkl", data: P.whole("N") }])),
    /several pickles/,
  );
  assert.match(
    message(() => open(good.slice(1))),
    /without data\.pkl/,
  );
  assert.match(
    message(() => open([...good, { name: "m/constants.pkl", data: P.whole("N") }])),
    /TorchScript program/,
  );
  assert.match(
    message(() => open(change(1, { data: Buffer.from("big") }))),
    /"big"-endian/,
  );
  assert.match(
    message(() => open([...good, { name: "../x", data: Buffer.from("") }])),
    /leads out/,
  );
});

test("openTorch() refuses a pre-1.6 file that is cut, padded or altered, and everything that is no torch file", () => {
  const legacy = fs.readFileSync(pickle("odd_pre16.bin"));
  const cut = message(() => openTorch(file(legacy.subarray(0, legacy.length - 1))));
  assert.match(cut, /is cut off: storage \d+ needs \d+ bytes/);
  assert.match(
    message(() => openTorch(file(bytes(legacy, "x")))),
    /1 bytes after its last storage belong to nothing/,
  );
  const big = Buffer.from(legacy);
  big[big.indexOf("little_endian") + "little_endian".length + 2] = 0x89;
  assert.match(
    message(() => openTorch(file(big))),
    /other byte order/,
  );
  assert.match(
    message(() => openTorch(file(P.whole("N")))),
    /is a pickle, but not one of torch\.save/,
  );
  assert.match(
    message(() => openTorch(file("hello"))),
    /was not written by torch\.save: it begins with 68656c6c6f/,
  );
  assert.match(
    message(() => openTorch(file(""))),
    /is empty/,
  );
  assert.match(
    message(() => openTorch(file(bytes(Buffer.alloc(257), "ustar", Buffer.alloc(300))))),
    /tar format of 2016; load it with PyTorch and save it again/,
  );
});

test("openTorch() survives any bytes: an error naming the file, or tensors that can be read", () => {
  const bases = ["odd_pre16.bin", "odd.bin"].map((name) => fs.readFileSync(pickle(name)));
  const pkl = Buffer.from(P.whole(P.dict(P.text("w"), tensor([2, 2], [1, 2]))));
  const place = path.join(scratch, "fuzz.bin");
  const edits = fc.array(fc.record({ at: fc.nat(), to: fc.nat(255) }), { minLength: 1, maxLength: 3 });
  let opened = 0;
  fc.assert(
    fc.property(fc.nat(2), edits, (which, list) => {
      const copy = Buffer.from(which < 2 ? bases[which] : pkl);
      for (const { at, to } of list) copy[at % Math.min(copy.length, 3000)] = to;
      fs.writeFileSync(place, which < 2 ? copy : torchZip(copy)); // with a right CRC, so that the pickle itself is met
      try {
        const { tensors, close } = openTorch(place);
        opened++;
        for (const t of tensors.values()) if (t.byteLength < 2 ** 20) assert.equal(t.read().length, t.byteLength);
        close();
      } catch (error) {
        assert.ok((error as Error).message.includes("fuzz.bin"), String(error));
      }
    }),
    { numRuns: 2500 },
  );
  assert.ok(opened > 50);
});
