import assert from "node:assert/strict";
import { before, test } from "node:test";
import { tf } from "vitrine/engine";
import { type Clip, load } from "vitrine/models";
import { at, edit, noTap, record, watched } from "vitrine/nn/tap";
import { freshFolder, inputs, type Inputs, loadClip } from "../support/clip";
import { expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";

let clip: Clip;
let x: Inputs;
before(async () => {
  clip = await loadClip();
  x = inputs();
});

const image = (model: Clip, tap = noTap) => tf.tidy(() => Float32Array.from(model.encodeImage(x.pixels, tap).dataSync()));
const text = (model: Clip, tap = noTap) => tf.tidy(() => Float32Array.from(model.encodeText(x.ids, x.mask, tap).dataSync()));

const BLOCK =
  "resid_pre attn.q attn.k attn.v attn.attn_scores attn.pattern attn.z attn_out resid_mid mlp.pre mlp.post mlp_out resid_post".split(" ");

test("record() sees the activations of a 1-layer CLIP under these names, in this order", async () => {
  const one = await load(
    await freshFolder((config) => {
      config.text_config.num_hidden_layers = 1;
      config.vision_config.num_hidden_layers = 1;
    }),
  );
  const { tap, seen } = record();
  image(one, tap);
  text(one, tap);
  const block = (tower: string) => BLOCK.map((name) => `${tower}.blocks.0.${name}`);
  assert.deepEqual(seen.names(), [
    "vision.patch_embed",
    "vision.embed",
    ...block("vision"),
    "vision.pooled",
    "vision.out",
    "text.embed",
    ...block("text"),
    "text.final",
    "text.pooled",
    "text.out",
  ]);
  seen.dispose();
  one.dispose();
});

test("record() gives the shapes that the names promise", () => {
  const { tap, seen } = record(/^vision/);
  const [B, N, D, H, F] = [3, 17, 48, 3, 96]; // three pictures of 56 pixels in patches of 14, and the class token
  clip.encodeImage(x.pixels, tap).dispose();
  const shapes = { patch_embed: [B, N - 1, D], embed: [B, N, D], pooled: [B, D], out: [B, 24] };
  const inBlock = {
    resid_pre: [B, N, D],
    "attn.q": [B, H, N, D / H],
    "attn.k": [B, H, N, D / H],
    "attn.v": [B, H, N, D / H],
    "attn.attn_scores": [B, H, N, N],
    "attn.pattern": [B, H, N, N],
    "attn.z": [B, H, N, D / H],
    attn_out: [B, N, D],
    resid_mid: [B, N, D],
    "mlp.pre": [B, N, F],
    "mlp.post": [B, N, F],
    mlp_out: [B, N, D],
    resid_post: [B, N, D],
  };
  for (const [name, shape] of Object.entries(shapes)) assert.deepEqual(seen.get(`vision.${name}`).shape, shape, name);
  for (const [name, shape] of Object.entries(inBlock)) assert.deepEqual(seen.get(`vision.blocks.2.${name}`).shape, shape, name);
  seen.dispose();
});

test("watching changes no number", () => {
  for (const run of [image, text]) {
    const { tap, seen } = record();
    expectSame(run(clip, tap), run(clip));
    seen.dispose();
  }
});

test("the rows of every recorded pattern sum to 1, and no text looks ahead or at padding", () => {
  const { tap, seen } = record("attn.pattern");
  image(clip, tap);
  text(clip, tap);
  assert.equal(seen.names().length, 5);
  for (const [, pattern] of seen.entries()) {
    const sums = tf.tidy(() => pattern.sum(-1).dataSync());
    expectClose(sums, new Float32Array(sums.length).fill(1), 1e-6);
  }
  const mask = x.mask.arraySync() as number[][];
  const pattern = seen.get("text.blocks.1.attn.pattern").arraySync() as number[][][][];
  assert.ok(
    mask.some((row) => row.includes(0)),
    "one caption is padded",
  );
  pattern.forEach((heads, b) =>
    heads.forEach((rows) =>
      rows.forEach((row, query) =>
        row.forEach((share, key) => {
          if (key > query || (!mask[b][key] && mask[b][query])) assert.equal(share, 0, `caption ${b}: ${query} looks at ${key}`);
        }),
      ),
    ),
  );
  seen.dispose();
});

test("record() keeps what it saw beyond a tidy, once for each name, until dispose()", async () => {
  await keepsTensorCount(() => {
    const { tap, seen } = record("resid_post");
    const before = tf.memory().numTensors;
    image(clip, tap);
    image(clip, tap);
    assert.equal(tf.memory().numTensors - before, 3, "three layers, the second run in the place of the first");
    assert.ok(seen.get("vision.blocks.2.resid_post").dataSync().every(Number.isFinite));
    seen.dispose();
    assert.deepEqual(seen.names(), []);
  });
});

test("record() matches a name, the end of one, a list, a pattern with any flags", () => {
  const names = (which: RegExp | string | string[]) => {
    const { tap, seen } = record(which);
    image(clip, tap);
    const got = seen.names();
    seen.dispose();
    return got;
  };
  assert.deepEqual(names("vision.out"), ["vision.out"]);
  assert.deepEqual(
    names("attn.z"),
    [0, 1, 2].map((i) => `vision.blocks.${i}.attn.z`),
  );
  assert.deepEqual(names("z"), names("attn.z"), "whole parts");
  assert.deepEqual(names(["vision.out", "pooled"]), ["vision.pooled", "vision.out"]);
  assert.deepEqual(names(/resid_p/), names(/resid_p/g), "a pattern with g or y has a memory");
  assert.equal(names(/resid_p/y).length, 0, "y asks for a match at the start");
});

test("seen.get() throws and says what there is", async () => {
  const { tap, seen } = record(/patern$/);
  await messageOf(() => seen.get("vision.out"), 'nothing ran with this tap yet, so "vision.out" is not there');
  image(clip, tap);
  await messageOf(() => seen.get("vision.out"), "/patern$/ met none of the 43 activations, such as vision.patch_embed, vision.embed");
  const other = record("pattern");
  image(clip, other.tap);
  await messageOf(
    () => other.seen.get("vision.blocks.3.attn.pattern"),
    'no activation "vision.blocks.3.attn.pattern"; recorded: vision.blocks.0.attn.pattern, vision.blocks.1.attn.pattern',
  );
  other.seen.dispose();
});

test("edit() with the same numbers changes rounding at most; a copied head-free layer does more", () => {
  const same = edit("z", (z) => z.clone());
  expectClose(image(clip, same.tap), image(clip), 1e-5); // an edited layer runs as its formula
  assert.deepEqual(
    same.edited(),
    [0, 1, 2].map((i) => `vision.blocks.${i}.attn.z`),
  );
  same.check();
  const ablated = edit("vision.blocks.1.attn.z", (z) => tf.zerosLike(z));
  assert.notDeepEqual(image(clip, ablated.tap), image(clip));
  ablated.check();
});

test("edit() of a layer's heads to zero leaves that layer's attention with the bias of its projection alone", () => {
  const { tap: watch, seen } = record("vision.blocks.1.attn_out");
  const { tap: ablate } = edit("vision.blocks.1.attn.z", (z) => tf.zerosLike(z));
  image(clip, ((name, value) => watch(name, ablate(name, value))) as typeof watch);
  const bias = clip.params.vision.blocks[1].attn.out.bias.dataSync();
  const out = seen.get("vision.blocks.1.attn_out").dataSync();
  expectSame(
    out,
    Float32Array.from(out, (_, i) => bias[i % bias.length]),
  );
  seen.dispose();
});

test("edit() refuses another shape, and check() an edit that met nothing", async () => {
  const { tap } = edit("pooled", (y) => y.flatten());
  await messageOf(() => image(clip, tap), 'edit: "vision.pooled" has shape [3,48], the replacement [144]');
  const typo = edit("vision.blocks.9.attn.z", (z) => tf.zerosLike(z));
  image(clip, typo.tap);
  assert.deepEqual(typo.edited(), []);
  await messageOf(() => typo.check(), "edit: vision.blocks.9.attn.z met none of the 43 activations of the run, such as vision.patch_embed");
});

test("at() names what stands below it, and asks its tap with the full name", () => {
  const asked: string[] = [];
  const tap = Object.assign(
    ((name, y) => {
      asked.push(name);
      return y;
    }) as typeof noTap,
    {
      watches: (prefix: string) => prefix.startsWith("a.b"),
    },
  );
  const inner = at(at(tap, "a"), "b");
  const y = tf.scalar(1);
  assert.equal(inner("c", y), y);
  assert.deepEqual(asked, ["a.b.c"]);
  assert.equal(watched(inner), true);
  assert.equal(watched(at(tap, "x")), false);
  assert.equal(watched(noTap), false);
  assert.equal(at(noTap, "a"), noTap);
  y.dispose();
});
