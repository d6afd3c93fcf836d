import assert from "node:assert/strict";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { bfloat16Tensor, gatherBfloat16, isBfloat16, matMulBfloat16, toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import { type Clip, load } from "vitrine/models";
import { leaves } from "vitrine/nn/spec";
import { inputs, logits, MODEL, oracle } from "../support/clip";
import { cosine, expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

/** Every bit pattern of 16 bits, and the float32 that each stands for. */
const patterns = Uint16Array.from({ length: 65536 }, (_, i) => i);
const widened = new Float32Array(Uint32Array.from(patterns, (p) => p << 16).buffer);
const bytesOf = (x: Uint16Array) => new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
const read = (x: tf.Tensor) => tf.tidy(() => Float32Array.from(toFloat32(x).dataSync()));
const draw = random(4);
const noise = (...shape: number[]) =>
  tf.tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 2 * draw() - 1),
    shape,
  );

test("bfloat16Tensor() and toFloat32() carry every bit pattern, subnormal numbers, infinities and -0 too", () => {
  const x = bfloat16Tensor(bytesOf(patterns), [256, 256]);
  expectSame(read(x), widened); // Object.is tells -0 from 0 and takes any NaN for NaN
  x.dispose();
});

test("toBfloat16() gives every bfloat16 number back", () => {
  tf.tidy(() => expectSame(read(toBfloat16(tf.tensor(widened, [65536]))), widened));
});

test("toBfloat16() rounds to the nearest, ties to even", () => {
  const floats = Float32Array.from({ length: 4096 }, () => (2 * draw() - 1) * 10 ** Math.floor(60 * draw() - 30));
  const bits = new Uint32Array(floats.buffer);
  for (let i = 0; i < 512; i++) bits[i] = (bits[i] & 0xffff0000) | 0x8000; // exactly between two
  const nearest = Uint32Array.from(bits, (b) => ((b + 0x7fff + ((b >>> 16) & 1)) & 0xffff0000) >>> 0);
  tf.tidy(() => expectSame(read(toBfloat16(tf.tensor1d(floats))), new Float32Array(nearest.buffer)));
});

test("a bfloat16 tensor says its dtype, and tf.memory() counts two bytes a number", () => {
  const before = tf.memory();
  const x = bfloat16Tensor(bytesOf(patterns), [65536]);
  assert.equal(x.dtype, "bfloat16");
  assert.ok(isBfloat16(x));
  assert.deepEqual(x.shape, [65536]);
  assert.deepEqual([tf.memory().numTensors - before.numTensors, tf.memory().numBytes - before.numBytes], [1, 131072]);
  const wide = toFloat32(x);
  assert.deepEqual([wide.dtype, tf.memory().numBytes - before.numBytes], ["float32", 131072 + 262144]);
  assert.equal(toBfloat16(x), x);
  assert.equal(toFloat32(wide), wide);
  tf.dispose([x, wide]);
  assert.deepEqual([tf.memory().numTensors, tf.memory().numBytes], [before.numTensors, before.numBytes]);
});

test("clone, keep, tidy and dispose treat it as any tensor", () => {
  const before = tf.memory();
  const count = () => [tf.memory().numTensors - before.numTensors, tf.memory().numBytes - before.numBytes];
  const [kept, result] = tf.tidy(() => {
    const x = toBfloat16(noise(8, 4));
    return [tf.keep(x.clone()), x.clone()] as tf.Tensor[];
  });
  assert.equal(kept.dtype, "bfloat16");
  const numbers = read(kept);
  expectSame(read(result), numbers);
  result.dispose();
  expectSame(read(kept), numbers, "the other clone lives on");
  assert.equal(count()[0], 1);
  kept.dispose();
  assert.deepEqual(count(), [0, 0]);
  assert.ok(kept.isDisposed);
});

test("bfloat16Tensor() refuses bytes that do not fill the shape", async () => {
  await keepsTensorCount(() =>
    messageOf(() => bfloat16Tensor(new Uint8Array(10), [2, 3]), "bfloat16Tensor: 10 bytes for shape [2,3], expected 12"),
  );
});

test("matMulBfloat16() adds up in float32 and rounds once, either side transposed, at awkward sizes", () => {
  for (const [m, k, n] of [
    [1, 1, 1],
    [3, 257, 5],
    [17, 31, 1],
    [64, 64, 64],
  ])
    tf.tidy(() => {
      const [a, b] = [toBfloat16(noise(m, k)), toBfloat16(noise(k, n))] as tf.Tensor2D[];
      const exact = tf.matMul(toFloat32(a), toFloat32(b)).dataSync();
      const got = read(matMulBfloat16(a, b));
      got.forEach((value, i) =>
        assert.ok(Math.abs(value - exact[i]) <= Math.abs(exact[i]) / 256 + 1e-4, `${m}x${k}x${n}: ${value} for ${exact[i]}`),
      );
      const turned = (x: tf.Tensor2D) => toBfloat16(toFloat32(x).transpose()) as tf.Tensor2D;
      for (const [ta, tb] of [
        [true, false],
        [false, true],
        [true, true],
      ])
        expectClose(read(matMulBfloat16(ta ? turned(a) : a, tb ? turned(b) : b, ta, tb)), exact, k / 128);
    });
});

test("gatherBfloat16() moves numbers without changing one", () => {
  tf.tidy(() => {
    const table = toBfloat16(noise(7, 3)) as tf.Tensor2D;
    const all = read(table);
    const ids = [6, 0, 6, 3];
    const rows = gatherBfloat16(table, tf.tensor2d(ids, [2, 2], "int32"));
    assert.deepEqual([rows.shape, rows.dtype], [[2, 2, 3], "bfloat16"]);
    expectSame(
      read(rows),
      ids.flatMap((id) => Array.from(all.slice(3 * id, 3 * id + 3))),
    );
  });
});

const STOCK: { [name: string]: (b: tf.Tensor, f: tf.Tensor) => unknown } = {
  "tf.add(bfloat16, float32)": (b, f) => tf.add(b, f),
  "tf.add(float32, bfloat16)": (b, f) => tf.add(f, b),
  "tf.add(bfloat16, bfloat16)": (b) => tf.add(b, b),
  "tf.mul with a number": (b) => b.mul(2),
  "tf.matMul(bfloat16, float32)": (b, f) => tf.matMul(b as tf.Tensor2D, f as tf.Tensor2D),
  "tf.matMul(bfloat16, bfloat16)": (b) => tf.matMul(b as tf.Tensor2D, b as tf.Tensor2D),
  "tf.relu": (b) => tf.relu(b),
  "tf.square": (b) => tf.square(b),
  "tf.sum": (b) => tf.sum(b),
  "tf.max": (b) => tf.max(b),
  "tf.softmax": (b) => tf.softmax(b),
  "tf.transpose": (b) => tf.transpose(b),
  "tf.reshape": (b) => tf.reshape(b, [4]),
  "tf.slice": (b) => tf.slice(b, [0, 0], [1, 2]),
  "tf.concat": (b, f) => tf.concat([b, f] as tf.Tensor2D[]),
  "tf.gather": (b) => tf.gather(b, tf.tensor1d([0], "int32")),
  "tf.cast": (b) => tf.cast(b, "float32"),
  "tf.where": (b, f) => tf.where(tf.onesLike(f).cast("bool"), b, f),
  "tf.argMax": (b) => tf.argMax(b),
  "tf.equal": (b, f) => tf.equal(b, f),
  "tf.maximum": (b) => tf.maximum(b, 2),
};

for (const [name, op] of Object.entries(STOCK))
  test(`${name} fails instead of answering wrongly`, () => {
    tf.tidy(() => assert.throws(() => (op(toBfloat16(noise(2, 2)), noise(2, 2)) as tf.Tensor).dataSync()));
  });

test("reading a bfloat16 tensor says how to widen it", async () => {
  const x = toBfloat16(noise(2));
  for (const reader of [() => x.dataSync(), () => x.data(), () => x.arraySync(), () => x.array(), () => x.toString()])
    await messageOf(reader, 'widen the tensor first with toFloat32 of "vitrine/engine/bfloat16"');
  x.dispose();
});

test('load(…, { dtype: "bfloat16" }) keeps matrices in bfloat16 alone: the bytes of tf.memory()', async () => {
  const measure = async (dtype: "float32" | "bfloat16") => {
    const before = tf.memory();
    const clip = await load(MODEL, { dtype });
    const [bytes, tensors] = [tf.memory().numBytes - before.numBytes, tf.memory().numTensors - before.numTensors];
    const numbers = (matrix: boolean) =>
      leaves(clip.spec)
        .filter(({ spec }) => spec.matrix === matrix)
        .reduce((sum, { spec }) => sum + spec.shape.reduce((a, b) => a * b, 1), 0);
    const counts = [numbers(true), numbers(false)];
    clip.dispose();
    return { bytes, tensors, counts };
  };
  const [wide, narrow] = [await measure("float32"), await measure("bfloat16")];
  const [matrices, others] = wide.counts;
  assert.deepEqual([wide.bytes, narrow.bytes], [4 * (matrices + others), 2 * matrices + 4 * others]);
  assert.equal(narrow.tensors, wide.tensors);
  assert.ok(matrices / (matrices + others) > 0.9, "matrices are nearly all");
});

test("CLIP in bfloat16 points where the oracle does: cosine of every embedding above 0.999", async () => {
  const { array } = oracle();
  const x = inputs();
  const clip: Clip = await load(MODEL, { dtype: "bfloat16" });
  const embeddings = { image_embeds: clip.encodeImage(x.pixels), text_embeds: clip.encodeText(x.ids, x.mask) };
  for (const [name, tensor] of Object.entries(embeddings)) {
    const [got, want, [, width]] = [tensor.dataSync(), array(name).values, array(name).shape];
    for (let i = 0; i < want.length; i += width) {
      const share = cosine(got.slice(i, i + width), want.slice(i, i + width));
      assert.ok(share > 0.999 && share < 1 - 1e-9, `${name} ${i / width}: cosine ${share}`);
    }
  }
  expectClose(logits(clip, x), array("logits_per_image").values, 0.1);
  tf.dispose(embeddings);
  clip.dispose();
});
