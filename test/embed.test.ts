import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { embedImages, embedTexts, pixelBatch, tokenBatch } from "vitrine/embed";
import { setProgressRenderer } from "vitrine/engine/progress";
import type { Picture, PictureSource } from "vitrine/image/picture";
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
  assert.deepEqual(await embedImages(clip, []), { values: new Float32Array(0), count: 0, width: 24, indices: [], failures: [] });
});

test("embedImages() with threads gives bit for bit what it gives without", async () => {
  const path = join(ORACLE, "images", "photo.jpg");
  const list = Array.from({ length: 90 }, (_, i) => (i % 3 ? pictures[i % 7] : path));
  const alone = await embedImages(clip, list, { batchSize: 16, workers: 0 });
  for (const workers of [1, 2]) {
    const { values, count, indices } = await embedImages(clip, list, { batchSize: 16, workers });
    assert.equal(count, 90);
    assert.deepEqual(indices, Array.from(list.keys()));
    assert.deepEqual(values, alone.values);
  }
});

test("embedImages() with onError: skip leaves out what cannot be read and lists it; the other rows are what they were", async () => {
  const list: PictureSource[] = Array.from({ length: 50 }, (_, i) => pictures[i % 7]);
  const whole = await embedImages(clip, list, { batchSize: 8 });
  const bad = [2, 16, 17, 18, 19, 20, 21, 22, 23, 49]; // a whole batch of eight among them
  for (const i of bad) list[i] = `no/such/${i}.jpg`;
  const some = await embedImages(clip, list, { batchSize: 8, onError: "skip" });
  assert.deepEqual(
    some.failures.map(({ index, source, error }) => [index, source, error.message.split(":")[0]]),
    bad.map((i) => [i, `no/such/${i}.jpg`, `no/such/${i}.jpg`]),
  );
  assert.equal(some.count, 40);
  assert.deepEqual(
    some.indices,
    Array.from(list.keys()).filter((i) => !bad.includes(i)),
  );
  some.indices.forEach((index, i) => expectClose(row(some, i), row(whole, index), 1e-6));
  const none = await embedImages(clip, ["no/such.jpg"], { onError: "skip" });
  assert.deepEqual([none.count, none.values.length, none.failures.length], [0, 0, 1]);
});

test("embedImages() names every picture of the batch that cannot be read, and says what to do", async () => {
  const list = [pictures[0], "no/one.jpg", pictures[1], new Uint8Array(3)];
  const text = await messageOf(
    () => embedImages(clip, list),
    "2 pictures cannot be read",
    "[1] no/one.jpg: no such file",
    "[3] picture of 3 bytes",
  );
  assert.match(text, /onError: "skip"/);
  const error = (await embedImages(clip, list).catch((cause) => cause)) as { failures: { index: number }[] };
  assert.deepEqual(
    error.failures.map(({ index }) => index),
    [1, 3],
  );
  await messageOf(() => embedImages(clip, list, { onError: "ignore" as "skip" }), 'onError is "ignore", expected "throw" or "skip"');
  await messageOf(() => embedImages(clip, list, { workers: -1 }), "workers is -1, expected a whole number of at least 0");
});

test("embedImages() stopped by its signal keeps whole batches, in order, within a second", async () => {
  const stop = new AbortController();
  let aborted = 0;
  const endless = (function* () {
    for (let i = 0; ; i++) yield pictures[i % 7];
  })();
  setTimeout(() => {
    aborted = performance.now();
    stop.abort();
  }, 300);
  const some = await embedImages(clip, endless, { batchSize: 7, signal: stop.signal });
  assert.ok(performance.now() - aborted < 1000);
  assert.ok(some.count > 0 && some.count % 7 === 0);
  assert.deepEqual(
    some.indices,
    Array.from({ length: some.count }, (_, i) => i),
  );
  expectClose(row(some, some.count - 1), row(some, 6), 1e-6);
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
