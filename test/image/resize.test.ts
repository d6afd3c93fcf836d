import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { type Filter, resize } from "vitrine/image/resize";
import { readArrays, readCases } from "./arrays";
import { pattern } from "./pattern";

type Case = { source?: string; pattern?: [number, number]; width: number; height: number; filter: Filter; result: string; sha256: string };
const cases: Case[] = readCases("resize/cases.json").resize; // Pillow's own answers: test/oracle/resize/make.py
const arrays = readArrays("resize/arrays.safetensors");

const source = (name: string) => {
  const { shape, bytes } = arrays.get(name)!;
  return { width: shape[1], height: shape[0], data: bytes };
};

test("resize() equals Pillow byte for byte on small pictures, odd sizes, up and down, six filters", () => {
  const small = cases.filter((c) => c.source);
  assert.equal(small.length, 54);
  for (const c of small) {
    const got = resize(source(c.source!), c.width, c.height, c.filter);
    assert.deepEqual([got.width, got.height], [c.width, c.height]);
    assert.deepEqual(got.data, arrays.get(c.result)!.bytes, c.result);
  }
});

test("resize() equals Pillow byte for byte on large pictures", () => {
  const large = cases.filter((c) => c.pattern);
  assert.equal(large.length, 24);
  for (const c of large) {
    const got = resize(pattern(...c.pattern!), c.width, c.height, c.filter);
    const digest = createHash("sha256").update(got.data).digest("hex");
    assert.equal(digest, c.sha256, `${c.pattern} -> ${c.width}x${c.height} ${c.filter}`);
  }
});

test("resize() with a window equals that part of the whole", () => {
  const picture = pattern(61, 47);
  const window = { left: 5, top: 9, width: 20, height: 13 };
  for (const filter of ["nearest", "bicubic", "lanczos", "box"] as const)
    for (const [width, height] of [
      [33, 30],
      [61, 30],
      [33, 47],
      [61, 47],
      [90, 77],
    ]) {
      const whole = resize(picture, width, height, filter);
      const part = resize(picture, width, height, filter, window);
      const expected = Array.from({ length: window.height }, (_, y) => {
        const start = ((window.top + y) * width + window.left) * 3;
        return Array.from(whole.data.subarray(start, start + window.width * 3));
      }).flat();
      assert.deepEqual(Array.from(part.data), expected, `${filter} ${width}x${height}`);
    }
});

test("resize() keeps a plain colour and leaves its input alone", () => {
  const picture = { width: 9, height: 4, data: new Uint8Array(108).fill(201) };
  assert.ok(resize(picture, 31, 3, "lanczos").data.every((v) => v === 201));
  assert.ok(picture.data.every((v) => v === 201));
});

test("resize() refuses sizes and filters that do not exist", () => {
  const picture = pattern(4, 4);
  assert.throws(() => resize(picture, 0, 4), /resize: width 0, height 4.*whole numbers above 0/);
  assert.throws(() => resize(picture, 4.5, 4), /whole numbers above 0/);
  assert.throws(() => resize(picture, 4, 4, "bicubic", { left: 2, top: 0, width: 3, height: 1 }), /window inside the new picture/);
  assert.throws(() => resize(picture, 2, 2, "bicubik" as "bicubic"), /filter "bicubik"; expected nearest, box, bilinear/);
});

test("resize() in the order rows-first is two passes, the horizontal one first, whatever the sizes", () => {
  for (const [width, height, toWidth, toHeight] of [
    [33, 40, 28, 28],
    [47, 161, 40, 30],
    [60, 20, 90, 50],
  ]) {
    const picture = pattern(width, height);
    const twice = resize(resize(picture, toWidth, height, "bicubic"), toWidth, toHeight, "bicubic");
    const whole = { left: 0, top: 0, width: toWidth, height: toHeight };
    assert.deepEqual(resize(picture, toWidth, toHeight, "bicubic", whole, "rows-first"), twice);
    const part = { left: 3, top: 5, width: 20, height: 9 };
    const cut = resize(picture, toWidth, toHeight, "bicubic", part, "rows-first");
    for (let y = 0; y < part.height; y++) {
      const at = ((y + part.top) * toWidth + part.left) * 3;
      assert.deepEqual(cut.data.subarray(y * 60, (y + 1) * 60), twice.data.subarray(at, at + 60));
    }
  }
  assert.notDeepEqual(resize(pattern(47, 161), 40, 30).data, resize(pattern(47, 161), 40, 30, "bicubic", undefined, "rows-first").data);
});
