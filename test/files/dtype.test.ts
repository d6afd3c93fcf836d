import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type Dtype, elements, fromFloat32, toFloat32, toInt32 } from "vitrine/files/dtype";
import { message } from "./helpers";

const source = (dtype: Dtype, data: Uint8Array) => ({ name: "w", dtype, file: "model.safetensors", read: () => data });
const raw = (view: ArrayBufferView) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

/** IEEE 754 binary16, from its definition. */
function half(h: number): number {
  const [sign, exponent, fraction] = [h & 0x8000 ? -1 : 1, (h >> 10) & 31, h & 1023];
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

test("toFloat32() widens all 65,536 float16 numbers by their definition", () => {
  const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const got = toFloat32(source("F16", raw(all)));
  for (let i = 0; i < 65536; i++) assert.ok(Object.is(got[i], half(i)), `0x${i.toString(16)}: ${got[i]}`);
});

test("fromFloat32() gives every float16 back, and rounds the point between two to the even one", () => {
  const finite = Array.from({ length: 0x7c00 }, (_, i) => i);
  const values = Float32Array.from(finite, half);
  assert.deepEqual([...new Uint16Array(fromFloat32(values, "F16").buffer)], finite);
  const middle = Float32Array.from(finite.slice(0, -1), (i) => (half(i) + half(i + 1)) / 2);
  assert.deepEqual(
    [...new Uint16Array(fromFloat32(middle, "F16").buffer)],
    finite.slice(0, -1).map((i) => i + (i & 1)),
  );
  const above = middle.map((x) => x * (1 + 2 ** -23));
  assert.deepEqual([...new Uint16Array(fromFloat32(above, "F16").buffer)], finite.slice(1));
  const extremes = new Float32Array([65519.996, 65520, 1e30, -1e30, 2 ** -25, -(2 ** -26), Number.NaN, Number.POSITIVE_INFINITY]);
  const bits = [...new Uint16Array(fromFloat32(extremes, "F16").buffer)];
  assert.deepEqual(bits, [0x7bff, 0x7c00, 0x7c00, 0xfc00, 0, 0x8000, 0x7e00, 0x7c00]);
});

test("fromFloat32() rounds to the nearest bfloat16, ties to even; toFloat32() is its inverse", () => {
  fc.assert(
    fc.property(fc.float({ noNaN: true, noDefaultInfinity: true, max: Math.fround(3e38), min: Math.fround(-3e38) }), (x) => {
      const rounded = fromFloat32(new Float32Array([x]), "BF16");
      const [y] = toFloat32(source("BF16", rounded));
      const [bits] = new Uint16Array(rounded.buffer);
      const neighbours = [bits - 1, bits + 1].map((b) => toFloat32(source("BF16", raw(new Uint16Array([b]))))[0]).filter(Number.isFinite);
      for (const other of neighbours) {
        assert.ok(Math.abs(x - y) <= Math.abs(x - other));
        if (Math.abs(x - y) === Math.abs(x - other)) assert.equal(bits & 1, 0);
      }
    }),
    { numRuns: 2000 },
  );
  const special = fromFloat32(new Float32Array([Number.NaN, Number.POSITIVE_INFINITY, 3.4e38, -0]), "BF16");
  const [nan, ...rest] = toFloat32(source("BF16", special));
  assert.ok(Number.isNaN(nan));
  assert.deepEqual(rest, [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY, -0]);
});

test("toFloat32() and toInt32() read every kind of whole number", () => {
  const numbers = [0, 1, -1, 100, -128, 127];
  const as = {
    I64: BigInt64Array.from(numbers, BigInt),
    I32: Int32Array.from(numbers),
    I16: Int16Array.from(numbers),
    I8: Int8Array.from(numbers),
  };
  for (const [dtype, view] of Object.entries(as)) {
    assert.deepEqual([...toFloat32(source(dtype as Dtype, raw(view)))], numbers, dtype);
    assert.deepEqual([...toInt32(source(dtype as Dtype, raw(view)))], numbers, dtype);
  }
  assert.deepEqual([...toInt32(source("U8", Uint8Array.of(0, 255)))], [0, 255]);
  assert.deepEqual([...toFloat32(source("BOOL", Uint8Array.of(0, 1, 2)))], [0, 1, 1]);
  assert.deepEqual([...toFloat32(source("F64", raw(new Float64Array([0.1, -2]))))], [Math.fround(0.1), -2]);
  assert.equal(toFloat32(source("I64", raw(BigInt64Array.of(-(2n ** 53n)))))[0], -(2 ** 53));
});

test("toFloat32() reads bytes that stand at an odd place", () => {
  const shifted = new Uint8Array([9, ...raw(new Float32Array([1.5, -2]))]).subarray(1);
  assert.deepEqual([...toFloat32(source("F32", shifted))], [1.5, -2]);
});

test("toInt32() keeps the ends of its range and refuses what is beyond, and what is not whole", () => {
  const of = (...values: bigint[]) => source("I64", raw(BigInt64Array.from(values)));
  assert.deepEqual([...toInt32(of(2n ** 31n - 1n, -(2n ** 31n)))], [2 ** 31 - 1, -(2 ** 31)]);
  assert.match(
    message(() => toInt32(of(0n, 2n ** 31n))),
    /model\.safetensors: tensor "w" holds 2147483648 at 1; it does not fit into 32 bits/,
  );
  assert.match(
    message(() => toInt32(of(-(2n ** 31n) - 1n))),
    /holds -2147483649 at 0/,
  );
  assert.match(
    message(() => toInt32(source("F32", new Uint8Array(4)))),
    /tensor "w" is F32; expected whole numbers/,
  );
});

test("fromFloat32() refuses a dtype of whole numbers, and copies", () => {
  assert.match(
    message(() => fromFloat32(new Float32Array(1), "I32")),
    /I32 does not hold floating-point numbers/,
  );
  const values = new Float32Array([1]);
  fromFloat32(values, "F32")[0] = 7;
  assert.equal(values[0], 1);
});

test("elements() multiplies, is 1 for a scalar, and refuses what no file can hold", () => {
  assert.deepEqual([elements([]), elements([2, 3]), elements([5, 0])], [1, 6, 0]);
  assert.match(
    message(() => elements([2 ** 40, 2 ** 40])),
    /more elements than any file can hold/,
  );
  assert.match(
    message(() => elements([-1])),
    /shape \[-1\] holds -1/,
  );
});
