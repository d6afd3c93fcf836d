import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { embedImages, embedTexts, pixelBatch, tokenBatch } from "vitrine/embed";
import { setProgressRenderer } from "vitrine/engine/progress";
import type { Picture } from "vitrine/image/picture";
import type { Clip } from "vitrine/models";
import { loadClip, ORACLE } from "./support/clip";
import { expectClose, keepsTensorCount, messageOf } from "./support/close";

let clip: Clip;
before(async () => {
  clip = await loadClip();
});

const draw = random(2);
const picture = (width = 20, height = 30): Picture => ({
  width,
  height,
  data: Uint8Array.from({ length: width * height * 3 }, () => 255 * draw()),
});
const pictures = [picture(), picture(60, 20), picture(3, 3), picture(56, 56), picture(1, 1), picture(100, 40), picture(31, 31)];
const texts = [
  "a cat",
  "two dogs running in the park",
  "",
  "你好 🙂",
  "a cat",
  "the image shows a small kitchen with a white refrigerator",
  "x",
];
const row = ({ values, width }: { values: Float32Array; width: number }, i: number) => values.subarray(i * width, (i + 1) * width);

test("embedImages() and embedTexts() give unit vectors in the order given, whatever the batch", async () => {
  const one = { images: await embedImages(clip, pictures, { batchSize: 1 }), texts: await embedTexts(clip, texts, { batchSize: 1 }) };
  for (const batchSize of [2, 3, 7, 32]) {
    const many = { images: await embedImages(clip, pictures, { batchSize }), texts: await embedTexts(clip, texts, { batchSize }) };
    for (const kind of ["images", "texts"] as const) {
      assert.deepEqual([many[kind].count, many[kind].width, many[kind].values.length], [7, 24, 7 * 24]);
      expectClose(many[kind].values, one[kind].values, 1e-5, `${kind} by ${batchSize}`);
    }
  }
  for (const kind of ["images", "texts"] as const)
    for (let i = 0; i < 7; i++) expectClose([row(one[kind], i).reduce((sum, x) => sum + x * x, 0)], [1], 1e-5);
  expectClose(row(one.texts, 0), row(one.texts, 4), 0, "the same text twice");
  assert.notDeepEqual(row(one.texts, 0), row(one.texts, 1));
});

test("embedImages() takes paths, bytes and pictures, from an array, a generator or an async generator", async () => {
  const path = join(ORACLE, "images", "photo.jpg");
  const fromArray = await embedImages(clip, [path, pictures[0]]);
  const asynchronous = (async function* () {
    yield path;
    yield pictures[0];
  })();
  expectClose((await embedImages(clip, asynchronous)).values, fromArray.values, 0);
  const generator = (function* () {
    yield path;
    yield pictures[0];
  })();
  expectClose((await embedImages(clip, generator)).values, fromArray.values, 0);
});

test("an iterator is read one batch at a time, so that its items need not fit in memory, nor end", async () => {
  let read = 0;
  const controller = new AbortController();
  const lazy = (function* () {
    for (;;) {
      if (++read === 5) controller.abort();
      yield "a cat";
    }
  })();
  await embedTexts(clip, lazy, { batchSize: 2, signal: controller.signal });
  assert.ok(read <= 6, `${read} read of an endless iterator`);
});

test("an interrupt keeps what is done, whole batches in order, and closes the iterator", async () => {
  const controller = new AbortController();
  let closed = false;
  const source = (async function* () {
    try {
      for (const [i, one] of texts.entries()) {
        if (i === 5) controller.abort();
        yield one;
      }
    } finally {
      closed = true;
    }
  })();
  const some = await embedTexts(clip, source, { batchSize: 2, signal: controller.signal });
  assert.equal(some.count, 4);
  assert.ok(closed);
  expectClose(some.values, (await embedTexts(clip, texts.slice(0, 4), { batchSize: 2 })).values, 0);
  const none = await embedTexts(clip, texts, { signal: controller.signal });
  assert.deepEqual([none.count, none.width, none.values.length], [0, 24, 0]);
});

test("embedImages() of nothing is nothing", async () => {
  assert.deepEqual(await embedImages(clip, []), { values: new Float32Array(0), count: 0, width: 24 });
});

test("embed functions refuse a single text or picture in place of a list, a bad batch size, and name a picture that cannot be read", async () => {
  await messageOf(() => embedTexts(clip, "a cat"), "embed: expected a list of texts, not one; put it in [ ]");
  await messageOf(() => embedImages(clip, "cat.jpg"), "embed: expected a list of pictures, not one");
  for (const batchSize of [0, -1, 1.5, Number.NaN])
    await messageOf(
      () => embedTexts(clip, texts, { batchSize }),
      `embed: batchSize is ${batchSize}, expected a whole number of at least 1`,
    );
  await keepsTensorCount(() => messageOf(() => embedImages(clip, [pictures[0], "no/such/cat.jpg"], { batchSize: 1 }), "no/such/cat.jpg"));
});

test("embedImages(), embedTexts(), pixelBatch() and tokenBatch() leave no tensor but what they give", async () => {
  await keepsTensorCount(() => embedImages(clip, pictures, { batchSize: 3 }));
  await keepsTensorCount(() => embedTexts(clip, texts, { batchSize: 3 }));
  await keepsTensorCount(() => {
    const pixels = pixelBatch(clip, pictures);
    assert.deepEqual(pixels.shape, [7, 56, 56, 3]);
    const { ids, mask } = tokenBatch(clip, [...texts, "word ".repeat(200)]);
    assert.deepEqual([ids.shape, mask.shape, ids.dtype], [[8, 77], [8, 77], "int32"]);
    assert.equal((ids.arraySync() as number[][])[7][76], 713, "a cut text still ends with its end-of-text");
    for (const x of [pixels, ids, mask]) x.dispose();
  });
});

test("progress is told how many there are, and ends also when a picture cannot be read", async () => {
  const states: { total: number; done: number; finished: boolean }[] = [];
  setProgressRenderer((state) => states.push(state));
  try {
    await embedTexts(clip, texts);
    await embedTexts(clip, new Set(texts), { total: 6 });
    await assert.rejects(embedImages(clip, ["no/such.jpg"]));
  } finally {
    setProgressRenderer(undefined);
  }
  const ends = states.filter((state) => state.finished).map(({ total, done }) => [done, total]);
  assert.deepEqual(ends, [
    [7, 7],
    [6, 6],
    [0, 1],
  ]);
});
