import assert from "node:assert/strict";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { embedImages, type Embeddings, embedTexts } from "vitrine/embed";
import { engine } from "vitrine/engine";
import type { Picture } from "vitrine/image/picture";
import type { Clip } from "vitrine/models";
import { neighbours, ranks, retrieval, rows, similarity, zeroShot } from "vitrine/retrieval";
import { loadClip } from "./support/clip";
import { expectClose, keepsTensorCount, messageOf } from "./support/close";

let clip: Clip;
before(async () => {
  await engine();
  clip = await loadClip();
});

const embeddings = (...vectors: number[][]): Embeddings => ({
  values: Float32Array.from(vectors.flat()),
  count: vectors.length,
  width: vectors[0].length,
});
const draw = random(6);
const picture = (): Picture => ({ width: 9, height: 9, data: Uint8Array.from({ length: 243 }, () => 255 * draw()) });
const pictures = [picture(), picture(), picture()];

/** Three unit vectors along the axes, and three texts whose cosines with them are these columns. */
const axes = embeddings([1, 0, 0], [0, 1, 0], [0, 0, 1]);
const texts = embeddings([0.8, 0.6, 0], [0.9, 0.3, 0.1], [0, 0.2, 0.7]);

test("similarity() is every dot product, row by row", async () => {
  expectClose(await similarity(texts, axes), texts.values, 1e-7);
  expectClose(await similarity(axes, texts), [0.8, 0.9, 0, 0.6, 0.3, 0.2, 0, 0.1, 0.7], 1e-7);
  await messageOf(() => similarity(axes, embeddings([1, 2])), "similarity: vectors of 3 and of 2 numbers; both must come from one model");
});

test("retrieval() of a 3 x 3 case worked out by hand", async () => {
  // text -> image: text 0 finds image 0 first (0.8 > 0.6 > 0); text 1 finds image 1 second (0.9 > 0.3); text 2 finds image 2 first.
  assert.deepEqual(await ranks(texts, axes), [1, 2, 1]);
  // image -> text: image 0 prefers text 1 (0.9 > 0.8); image 1 prefers text 0 (0.6 > 0.3); image 2 finds its own.
  assert.deepEqual(await ranks(axes, texts), [2, 2, 1]);
  assert.deepEqual((await retrieval(axes, texts)).objects(), [
    { direction: "text → image", "R@1": 2 / 3, "R@5": 1, "R@10": 1, random: 1 / 3, count: 3 },
    { direction: "image → text", "R@1": 1 / 3, "R@5": 1, "R@10": 1, random: 1 / 3, count: 3 },
  ]);
});

test("ties count as found last, so that a model of one answer has no share in R@k; NaN is found last too", async () => {
  const same = embeddings(...Array.from({ length: 12 }, () => [1, 0]));
  assert.deepEqual(await ranks(same, same), new Array(12).fill(12));
  const [row] = (await retrieval(same, same)).objects() as Record<string, number>[];
  assert.deepEqual([row["R@1"], row["R@5"], row["R@10"]], [0, 0, 0]);
  const broken = embeddings([Number.NaN, 1], [1, Number.NaN]);
  assert.deepEqual(await ranks(broken, broken), [2, 2]);
});

test("retrieval() counts R@5 and R@10 at their edges", async () => {
  // Query 0 finds its own at place i + 1 when i others are nearer.
  for (const [nearer, five, ten] of [
    [4, 1, 1],
    [5, 0, 1],
    [9, 0, 1],
    [10, 0, 0],
  ]) {
    const index = embeddings([0.5, 0], ...Array.from({ length: 11 }, (_, i) => [i < nearer ? 0.9 : 0.1, i + 1]));
    const queries = embeddings([1, 0], ...Array.from({ length: 11 }, () => [0, 1]));
    const places = await ranks(queries, index);
    assert.equal(places[0], nearer + 1);
    const share = (k: number) => places.filter((rank) => rank <= k).length / 12;
    const [, row] = (await retrieval(queries, index)).objects() as Record<string, number>[];
    assert.deepEqual([row["R@5"], row["R@10"]], [share(5), share(10)]);
    assert.deepEqual([places[0] <= 5 ? 1 : 0, places[0] <= 10 ? 1 : 0], [five, ten]);
  }
});

test("retrieval() refuses rows that do not belong together", async () => {
  await messageOf(
    () => retrieval(axes, embeddings([1, 0, 0])),
    "retrieval: 3 pictures and 1 texts; row i of one must belong to row i of the other",
  );
});

test("neighbours() ranks from 1, nearest first, ties by row, k at most the index", async () => {
  assert.deepEqual(
    (await neighbours(embeddings([1, 0]), embeddings([0.5, 0], [0.9, 0], [0.5, 1], [-1, 0]), 3)).objects(),
    [
      [1, 0.9],
      [0, 0.5],
      [2, 0.5],
    ].map(([row, score], i) => ({ query: 0, rank: i + 1, row, score: Math.fround(score) })),
  );
  assert.equal((await neighbours(axes, axes, 10)).numRows(), 9);
  assert.deepEqual((await neighbours(axes, axes, 1)).array("row"), [0, 1, 2]);
});

test("rows() cuts a flat array into rows of one length", async () => {
  assert.deepEqual(rows(Float32Array.of(1, 2, 3, 4), 2), [Float32Array.of(1, 2), Float32Array.of(3, 4)]);
  await messageOf(() => rows(new Float32Array(5), 2), "rows: 5 values do not divide into 2 rows");
});

test("zeroShot() gives each picture probabilities that sum to 1, in falling order, and those of the model's logits", async () => {
  const labels = ["cat", "dog", "kitchen", "$& of {}"];
  const template = "a photo of a {}";
  const table = (await zeroShot(clip, pictures, labels)).objects() as { picture: number; label: string; score: number }[];
  assert.equal(table.length, 12);
  const [images, prompts] = [
    await embedImages(clip, pictures),
    await embedTexts(
      clip,
      labels.map((label) => template.split("{}").join(label)),
    ),
  ];
  const scale = Math.exp(clip.params.logitScale.dataSync()[0]);
  const cosines = await similarity(images, prompts);
  for (let i = 0; i < 3; i++) {
    const mine = table.filter((row) => row.picture === i);
    expectClose([mine.reduce((sum, row) => sum + row.score, 0)], [1], 1e-6);
    assert.deepEqual(
      mine.map((row) => row.score),
      mine.map((row) => row.score).sort((a, b) => b - a),
    );
    const powers = labels.map((_, j) => Math.exp(scale * cosines[i * 4 + j]));
    const total = powers.reduce((a, b) => a + b, 0);
    for (const [j, label] of labels.entries())
      expectClose([mine.find((row) => row.label === label)!.score], [powers[j] / total], 1e-5, label);
  }
});

test("zeroShot() over several templates takes the mean of the prompts' vectors", async () => {
  const twice = await zeroShot(clip, pictures, ["cat", "dog"], { templates: ["a {}", "a {}"] });
  const once = await zeroShot(clip, pictures, ["cat", "dog"], { templates: ["a {}"] });
  expectClose(twice.array("score") as number[], once.array("score") as number[], 1e-5);
  const other = await zeroShot(clip, pictures, ["cat", "dog"], { templates: ["a {}", "many {} in a kitchen"] });
  assert.notDeepEqual(other.array("score"), once.array("score"));
});

test("zeroShot() refuses templates without a place, no templates, no labels; leaves no tensor", async () => {
  await messageOf(
    () => zeroShot(clip, pictures, ["cat"], { templates: ["a {}", "a photo"] }),
    'zeroShot: each template must hold "{}" for the label; "a photo" does not',
  );
  await messageOf(() => zeroShot(clip, pictures, ["cat"], { templates: [] }), "none was given");
  await messageOf(() => zeroShot(clip, pictures, []), "zeroShot: labels is empty");
  await keepsTensorCount(() => zeroShot(clip, pictures, ["cat", "dog"]));
});

test("zeroShot() that is interrupted ends normally with what was done", async () => {
  const controller = new AbortController();
  controller.abort();
  assert.equal((await zeroShot(clip, pictures, ["cat", "dog"], { signal: controller.signal })).numRows(), 0);
  const later = new AbortController();
  const watched = new Proxy(clip, {
    get: (target, key) => {
      if (key !== "encodeImage") return target[key as keyof Clip];
      return (...args: Parameters<Clip["encodeImage"]>) => {
        later.abort();
        return target.encodeImage(...args);
      };
    },
  });
  const some = await zeroShot(watched, pictures, ["cat", "dog"], { signal: later.signal, batchSize: 2 });
  assert.equal(some.numRows(), 4, "the first batch's two pictures, two labels each");
});

test("zeroShot() with onError: skip keeps the numbers of the pictures that it could read", async () => {
  const table = await zeroShot(clip, [pictures[0], "no/such.jpg", pictures[1]], ["cat", "dog"], { onError: "skip" });
  const whole = await zeroShot(clip, pictures.slice(0, 2), ["cat", "dog"]);
  assert.deepEqual(table.array("picture"), [0, 0, 2, 2]);
  assert.deepEqual(table.array("score"), whole.array("score"));
});
