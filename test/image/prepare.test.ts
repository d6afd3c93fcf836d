import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";

import { join } from "node:path";
import { test } from "node:test";
import { type PictureSource, readPicture } from "vitrine/image/picture";
import { defaultWorkers, type Prepared, type PreparedTiles, preparePictures, prepareTiles, readTiles } from "vitrine/image/prepare";
import { type ImageProcessor, loadImageProcessor } from "vitrine/image/processor";
import { tileProcessor } from "vitrine/image/tiles";
import sharp from "sharp";
import { messageOf } from "../support/close";
import { ORACLE } from "./arrays";
import { pattern } from "./pattern";
import { scratch } from "../support/scratch";

const processor = loadImageProcessor(join(ORACLE, "clip", "model"));
const photo = join(ORACLE, "images", "photo.jpg");
const never = new AbortController().signal;

/** Everything that is yielded, with its own copy of the numbers. */
async function all(source: Iterable<PictureSource> | AsyncIterable<PictureSource>, workers: number, from = processor): Promise<Prepared[]> {
  const got: Prepared[] = [];
  for await (const one of preparePictures(from, source, { ahead: 24, workers, signal: never }))
    got.push({ ...one, values: one.values.slice() });
  return got;
}

/** `count` sources of every kind, more than one thread prepares itself; pixels as a part of a larger array. */
async function sources(count: number): Promise<PictureSource[]> {
  const jpeg = new Uint8Array(
    await sharp(pattern(200, 150).data, { raw: { width: 200, height: 150, channels: 3 } })
      .jpeg()
      .toBuffer(),
  );
  const large = new Uint8Array(5 + 90 * 70 * 3).fill(7);
  const pixels = { width: 90, height: 70, data: large.subarray(5) };
  const kinds = [
    photo,
    jpeg,
    pixels,
    new URL(`file://${photo}`),
    { width: 4, height: 3, data: new Uint8ClampedArray(12).fill(200) as never },
  ];
  return Array.from({ length: count }, (_, i) => kinds[i % kinds.length]);
}

test("preparePictures() gives the numbers of process() bit for bit, in order, by any number of threads, and leaves the sources as they are", async () => {
  const list = await sources(100);
  const wanted = await Promise.all(list.slice(0, 5).map(async (source) => processor.process(await readPicture(source))));
  for (const workers of [0, 1, 3]) {
    const got = await all(list, workers);
    assert.deepEqual(
      got.map(({ index }) => index),
      list.map((_, i) => i),
    );
    for (const { index, source, values, error } of got) {
      assert.equal(error, undefined);
      assert.equal(source, list[index]);
      assert.deepEqual(values, wanted[index % 5], `picture ${index} with ${workers} workers`);
    }
  }
  assert.ok((list[1] as Uint8Array).length > 1000, "the caller's bytes were handed over, not a copy of them");
});

test("preparePictures() yields a picture that cannot be read with its error, from whatever thread, and goes on", async () => {
  const list = await sources(60);
  for (const i of [3, 40, 59]) list[i] = "no/such.jpg";
  list[41] = new Uint8Array(9);
  list[42] = null as unknown as string;
  const got = await all(list, 2);
  assert.deepEqual(
    got.filter(({ error }) => error).map(({ index, error }) => [index, error?.name, (error as Error & { code: string }).code]),
    [
      [3, "PictureError", "not-found"],
      [40, "PictureError", "not-found"],
      [41, "PictureError", "not-a-picture"],
      [42, "PictureError", "not-a-picture"],
      [59, "PictureError", "not-found"],
    ],
  );
  assert.match(got[40].error?.message ?? "", /no\/such\.jpg: no such file/);
});

test("preparePictures() reads `ahead` sources at most before the first is taken, and closes the iterator when the caller leaves", async () => {
  let [read, closed] = [0, false];
  const endless = (function* () {
    try {
      for (;;) {
        read++;
        yield photo;
      }
    } finally {
      closed = true;
    }
  })();
  for await (const { index } of preparePictures(processor, endless, { ahead: 40, workers: 1, signal: never })) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.ok(read <= 40 + index + 1, `${read} read when picture ${index} came`);
    if (index === 50) break;
  }
  assert.ok(closed);
});

test("preparePictures() ends within a second of its signal, also when a source never comes", async () => {
  for (const at of [5, 45]) {
    const stop = new AbortController();
    const stuck = (async function* () {
      for (let i = 0; i < at; i++) yield photo;
      await new Promise(() => {});
    })();
    let [last, aborted] = [-1, 0];
    for await (const { index } of preparePictures(processor, stuck, { ahead: 10, workers: 2, signal: stop.signal })) {
      last = index;
      if (index === at - 1)
        setTimeout(() => {
          aborted = performance.now();
          stop.abort();
        }, 50);
    }
    assert.equal(last, at - 1);
    assert.ok(performance.now() - aborted < 1000);
  }
});

test("preparePictures() passes on what the iterator throws, after the pictures before it", async () => {
  const broken = (function* () {
    for (let i = 0; i < 40; i++) yield photo;
    throw new Error("the list broke");
  })();
  let count = 0;
  const read = async () => {
    for await (const _ of preparePictures(processor, broken, { ahead: 8, workers: 1, signal: never })) count++;
  };
  await messageOf(read, "the list broke");
  assert.equal(count, 40);
});

test("preparePictures() says so when a thread cannot work", async () => {
  const config = { ...processor.config, mean: undefined } as unknown as ImageProcessor["config"];
  await messageOf(
    () => all(Array(40).fill(photo), 1, { ...processor, config }),
    "a worker thread failed (",
    "{ workers: 0 } does without them",
  );
});

test("preparePictures() prepares in this thread what only this thread knows", async () => {
  const own: ImageProcessor = { ...processor, config: undefined, process: (_, out = new Float32Array(56 * 56 * 3)) => out.fill(0.5) };
  assert.deepEqual((await all(Array(40).fill(photo), 2, own))[39].values, new Float32Array(56 * 56 * 3).fill(0.5));
});

test("preparePictures() stopped again and again while threads decode leaves a process that ends by itself", () => {
  const file = join(scratch(), "run.cjs");
  writeFileSync(
    file,
    `const { preparePictures } = require("vitrine/image/prepare");
     const { loadImageProcessor } = require("vitrine/image/processor");
     (async () => {
       const processor = loadImageProcessor(${JSON.stringify(join(ORACLE, "clip", "model"))});
       for (let i = 0; i < 8; i++) {
         const stop = new AbortController();
         for await (const { index } of preparePictures(processor, Array(400).fill(${JSON.stringify(photo)}), { ahead: 60, workers: 2, signal: stop.signal }))
           if (index === 35 + i) stop.abort();
       }
       console.log("done");
     })();`,
  );
  const { stdout, stderr, status } = spawnSync(process.execPath, [file], {
    encoding: "utf8",
    timeout: 60_000,
    env: { ...process.env, NODE_PATH: join(__dirname, "../../node_modules") },
  });
  assert.deepEqual([stdout.trim(), stderr, status], ["done", "", 0]);
});

test("defaultWorkers() is a quarter of the threads, and at least one", () => {
  const before = process.env.VITRINE_THREADS;
  try {
    for (const [threads, workers] of [
      ["1", 1],
      ["2", 1],
      ["8", 2],
      ["16", 4],
      ["256", 16],
    ] as const) {
      process.env.VITRINE_THREADS = threads;
      assert.equal(defaultWorkers(), workers);
    }
  } finally {
    if (before === undefined) delete process.env.VITRINE_THREADS;
    else process.env.VITRINE_THREADS = before;
  }
});

/** InternVL's cutting with the normalisation of a CLIP. */
const tiles = tileProcessor({
  view: { ...processor.config!, size: { height: 28, width: 28 }, resizeTo: { height: 28, width: 28 } },
  scheme: { name: "internvl", crop_to_patches: true, min_patches: 1, max_patches: 6, use_thumbnail: true, pad2square: false },
});

test("prepareTiles() gives the tiles of tile(), in order, by any number of threads, and the caller keeps them", async () => {
  const list = await sources(60);
  const overrides = { max_patches: 4 };
  const wanted = await Promise.all(list.slice(0, 5).map(async (source) => tiles.tile(await readPicture(source), overrides)));
  assert.ok(new Set(wanted.map(({ count }) => count)).size > 1, "pictures with different numbers of tiles");
  for (const workers of [0, 2]) {
    const got: PreparedTiles[] = [];
    for await (const one of prepareTiles(tiles, list, { ahead: 24, workers, signal: never, overrides })) got.push(one);
    assert.deepEqual(
      got.map(({ index }) => index),
      list.map((_, i) => i),
    );
    for (const { index, tiled, error } of got) {
      assert.equal(error, undefined);
      const { pictures, ...numbers } = tiled!;
      const { pictures: wantedPictures, ...wantedNumbers } = wanted[index % 5];
      assert.deepEqual(numbers, wantedNumbers, `picture ${index} with ${workers} workers`);
      for (const [i, picture] of pictures.entries()) assert.deepEqual(Buffer.from(picture.data), Buffer.from(wantedPictures[i].data));
    }
  }
  const wrong = prepareTiles(tiles, list, { ahead: 4, overrides: { max_patches: 0 } });
  await assert.rejects(wrong.next(), /max_patches: 0, expected a whole number from 1/);
});

test("readTiles() names every picture of a batch that cannot be read; the others survive on request", async () => {
  const list = await sources(8);
  list[2] = "no/such.jpg";
  list[5] = new Uint8Array(9);
  await assert.rejects(readTiles(tiles, list, { workers: 0, signal: never }), (error: AggregateError) => {
    assert.match(
      error.message,
      /^2 of 8 pictures cannot be read \(onError: "skip" leaves them out\):\n {2}picture 2: no\/such\.jpg: no such file/,
    );
    assert.match(error.message, /\n {2}picture 5: /);
    return error.errors.length === 2;
  });
  const { tiled, indices, failures } = await readTiles(tiles, list, { onError: "skip", workers: 0, signal: never });
  assert.deepEqual(indices, [0, 1, 3, 4, 6, 7]);
  assert.deepEqual(
    failures.map(({ index }) => index),
    [2, 5],
  );
  assert.deepEqual(tiled[2].pixels, tiles.tile(await readPicture(list[3])).pixels);
  await assert.rejects(readTiles(tiles, list, { signal: AbortSignal.abort() }), { name: "AbortError" });
});
