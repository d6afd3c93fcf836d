import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import { isDeferred } from "vitrine/engine/deferred";
import { frozenWeightFromFile } from "vitrine/engine/frozen";
import { type FilePart, readsFiles, tensorFromFile } from "vitrine/engine/from-file";
import { fromFloat32, toFloat32 as widened } from "vitrine/files/dtype";
import { openFile } from "vitrine/files/window";
import { scratch } from "../support/clip";
import { keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const folder = scratch();
const ROOT = join(__dirname, "..", "..");
let files = 0;

/** A file of `before` odd bytes and then these numbers; the part that holds them, and what happened to it. */
function partOf(shape: number[], dtype: "float32" | "bfloat16", before = 0) {
  const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
  for (let i = 0; i < values.length; i++) values[i] = ((i * 40_503 + files) % 65_521) / 65_521 - 0.5;
  const bytes = fromFloat32(values, dtype === "float32" ? "F32" : "BF16");
  const path = join(folder, `${files++}.bin`);
  fs.writeFileSync(path, Buffer.concat([Buffer.alloc(before, 0xff), bytes]));
  const file = openFile(path);
  const part: FilePart = { ...file.hold(before, bytes.byteLength), dtype, shape };
  file.close();
  const stored = widened({ name: "", file: path, dtype: dtype === "float32" ? "F32" : "BF16", read: () => bytes });
  return { part, path, values: stored };
}

const numbers = (x: tf.Tensor): Float32Array => tf.tidy(() => toFloat32(x).dataSync()) as Float32Array;
const rounded = (values: Float32Array): Float32Array =>
  tf.tidy(() => toFloat32(toBfloat16(tf.tensor1d(values, "float32"))).dataSync()) as Float32Array;
/** Bit for bit; quick, for there are millions. */
function expectBits(x: tf.Tensor, expected: Float32Array, what: string): void {
  const got = numbers(x);
  assert.ok(
    Buffer.from(got.buffer, got.byteOffset, got.byteLength).equals(
      new Uint8Array(expected.buffer, expected.byteOffset, expected.byteLength),
    ),
    what,
  );
}

test("tensorFromFile() gives the file's numbers, mapped or copied, at any place, of any shape", async () => {
  assert.ok(readsFiles());
  await keepsTensorCount(() => {
    // Tensors of 1 MB and more are mapped where they begin at a multiple of 64 bytes.
    for (const [shape, offsets] of [
      ...[[], [1], [7], [0, 3], [3, 0], [3, 5, 2], [70, 50]].map((small) => [small, [0, 64, 4, 3, 4096 + 8]]),
      ...[[1, 270_001], [2 ** 19 + 3]].map((large) => [large, [64, 4, 3]]),
    ])
      for (const before of offsets)
        for (const stored of ["float32", "bfloat16"] as const)
          for (const wanted of ["float32", "bfloat16"] as const) {
            const { part, values } = partOf(shape, stored, before);
            const x = tensorFromFile(part, wanted);
            assert.deepEqual([x.shape, x.dtype, isDeferred(x)], [shape, wanted, true]);
            expectBits(x, wanted === "bfloat16" ? rounded(values) : values, `${stored} [${shape}] at ${before} as ${wanted}`);
            x.dispose();
          }
  });
});

test("frozenWeightFromFile() is the weight in bfloat16, and multiplies as one", async () => {
  await keepsTensorCount(() => {
    for (const [out, inner] of [
      [1, 1],
      [64, 32],
      [130, 67],
      [1000, 1031], // several slices
      [3000, 900],
    ] as [number, number][])
      for (const stored of ["float32", "bfloat16"] as const) {
        const { part, values } = partOf([out, inner], stored, 4);
        const weight = frozenWeightFromFile(part, [out, inner]);
        assert.equal(weight.dtype as string, "bfloat16");
        expectBits(weight, rounded(values), `${stored} [${out}, ${inner}]`);
        weight.dispose();
      }
  });
});

test("a mapped file may be renamed over and removed; written to in place before its first use it is an error", async () => {
  for (const shape of [[2 ** 19], [100]]) {
    const gone = partOf(shape, "float32");
    const x = tensorFromFile(gone.part, "float32");
    fs.rmSync(gone.path);
    expectBits(x, gone.values, "removed");
    x.dispose();

    const replaced = partOf(shape, "float32");
    const y = tensorFromFile(replaced.part, "float32");
    fs.writeFileSync(`${replaced.path}.new`, "something else");
    fs.renameSync(`${replaced.path}.new`, replaced.path);
    expectBits(y, replaced.values, "replaced");
    y.dispose();

    const cut = partOf(shape, "float32");
    const z = tensorFromFile(cut.part, "float32");
    fs.truncateSync(cut.path, 64);
    await messageOf(() => z.dataSync(), cut.path, "was written to", /64 bytes now/, "load the model again");
    z.dispose();
  }
});

test("a file that is cut off under a mapped tensor is an error when a result is read, and the process goes on", () => {
  const path = join(folder, "cut.bin");
  fs.writeFileSync(path, new Uint8Array(new Float32Array(2 ** 22).fill(1).buffer));
  const code = `
    const fs = require("node:fs");
    const { engine, tf } = require("vitrine/engine");
    const { tensorFromFile } = require("vitrine/engine/from-file");
    const { openFile } = require("vitrine/files/window");
    engine().then(() => {
      const file = openFile(process.argv[1]);
      const x = tensorFromFile({ ...file.hold(0, 2 ** 24), dtype: "float32", shape: [2 ** 22] }, "float32");
      console.log(tf.slice(x, [0], [3]).dataSync().join());
      fs.truncateSync(process.argv[1], 8192);
      try { console.log(x.sum().dataSync()); } catch (error) { console.log(error.message); }
      console.log(tf.slice(x, [0], [3]).dataSync().join(), x.sum().dataSync()[0]);
      console.log(tf.scalar(2).add(1).dataSync()[0]);
    });`;
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, ["-e", code, path], { cwd: ROOT, encoding: "utf8" });
  assert.deepEqual([status, signal], [0, null], stderr);
  const lines = stdout.trim().split("\n");
  assert.equal(lines[0], "1,1,1");
  assert.match(lines[1], /A weight file was cut off while a model was using it.*Load the model again/);
  assert.deepEqual(lines.slice(2), ["1,1,1 2048", "3"]);
});

test("the binding refuses what is no part of a file", async () => {
  type Binding = { tensorFromFile(...args: unknown[]): unknown; kernelFromFile(...args: unknown[]): unknown };
  const { binding } = tf.backend() as unknown as { binding: Binding };
  const fd = fs.openSync(__filename, "r");
  await messageOf(() => binding.tensorFromFile(fd), "expected 5 arguments");
  await messageOf(() => binding.tensorFromFile("x", 0, 1, [1], false), "fd, offset and dtype are numbers");
  await messageOf(() => binding.tensorFromFile(fd, -1, 1, [1], false), "the offset is not a whole number of 0 or more");
  await messageOf(() => binding.tensorFromFile(fd, 0.5, 1, [1], false), "the offset is not a whole number");
  await messageOf(() => binding.tensorFromFile(fd, 0, 7, [1], false), "dtype 7 of TensorFlow is not taken");
  await messageOf(() => binding.tensorFromFile(fd, 0, 1, [-1], false), "impossible shape");
  await messageOf(() => binding.tensorFromFile(fd, 0, 1, [2 ** 30], false), /no memory|the file ends at byte \d+, before the tensor does/);
  await messageOf(() => binding.tensorFromFile(fd, 2 ** 40, 1, [1], false), "the file ends at byte 1099511627776");
  await messageOf(() => binding.tensorFromFile(987654, 0, 1, [1], false), "the file cannot be read");
  await messageOf(() => binding.tensorFromFile(987654, 0, 1, [1], true), "the file cannot be mapped");
  await messageOf(() => binding.kernelFromFile("cast", [1], fd, 0, 1, [4], 0), "rows is not 1 or more");
  await messageOf(() => binding.kernelFromFile("no such kernel", [1], fd, 0, 1, [4], 1), "kernel no such kernel is not there");
  await messageOf(() => binding.kernelFromFile("cast", [1], fd, 0, 1, [4], 2), "does not go by slices of rows");
  fs.closeSync(fd);
});
