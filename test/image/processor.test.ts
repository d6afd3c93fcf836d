import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";

import { join } from "node:path";
import { test } from "node:test";
import { readPicture } from "vitrine/image/picture";
import { loadImageProcessor } from "vitrine/image/processor";
import { ORACLE, readArrays, readCases } from "./arrays";
import { pattern } from "./pattern";
import { scratch } from "../support/scratch";

/** Our [H, W, 3] as the reference's [1, 3, H, W]. */
function channelsFirst(values: Float32Array): Float32Array {
  const plane = values.length / 3;
  return values.map((_, i) => values[(i % plane) * 3 + Math.floor(i / plane)]);
}

/** Largest and mean distance. */
function distance(got: Float32Array, want: Float32Array): { most: number; mean: number } {
  assert.equal(got.length, want.length);
  let [most, sum] = [0, 0];
  for (let i = 0; i < got.length; i++) {
    const d = Math.abs(got[i] - want[i]);
    assert.ok(!Number.isNaN(d));
    most = Math.max(most, d);
    sum += d;
  }
  return { most, mean: sum / got.length };
}

/** A folder with these files. */
function folder(files: Record<string, unknown>): string {
  const path = scratch();
  for (const [name, value] of Object.entries(files)) writeFileSync(join(path, name), JSON.stringify(value));
  return path;
}

type ImageCase = Record<"file" | "pixel_values" | "pixel_values.torchvision" | "raw.pixel_values", string>;
const cases: ImageCase[] = readCases("clip/cases.json").images[0].cases;
const arrays = readArrays("clip/arrays.safetensors");
const tolerances = readCases("manifest.json").tolerances;

for (const layout of ["model", "v5_layout"]) {
  test(`process() equals CLIPImageProcessorPil in every number, files of clip/${layout}`, async () => {
    const processor = loadImageProcessor(join(ORACLE, "clip", layout));
    assert.deepEqual(processor.size, { height: 56, width: 56 });
    assert.equal(cases.length, 6);
    for (const c of cases) {
      const got = channelsFirst(processor.process(await readPicture(join(ORACLE, c.file))));
      assert.deepEqual(got, arrays.get(c.pixel_values)!.floats(), c.file);
    }
  });

  test(`process() equals the reference on opened pictures (no EXIF, alpha on white), files of clip/${layout}`, async () => {
    const processor = loadImageProcessor(join(ORACLE, "clip", layout));
    const raw = cases.filter((c) => c["raw.pixel_values"]);
    assert.equal(raw.length, 2);
    for (const c of raw) {
      const picture = await readPicture(join(ORACLE, c.file), { exif: false, alpha: "white" });
      assert.deepEqual(channelsFirst(processor.process(picture)), arrays.get(c["raw.pixel_values"])!.floats(), c.file);
    }
  });
}

test("process() is as close to the torchvision processor as the reference's own PIL processor", async () => {
  const processor = loadImageProcessor(join(ORACLE, "clip", "model"));
  const { atol, mean_abs } = tolerances["pixel_values (torchvision)"];
  const torchvision = cases.filter((c) => c["pixel_values.torchvision"]);
  assert.equal(torchvision.length, 3);
  for (const c of torchvision) {
    const got = channelsFirst(processor.process(await readPicture(join(ORACLE, c.file))));
    const { most, mean } = distance(got, arrays.get(c["pixel_values.torchvision"])!.floats());
    assert.ok(most <= atol && mean <= mean_abs, `${c.file}: ${most} > ${atol} or ${mean} > ${mean_abs}`);
  }
});

test("process() equals SiglipImageProcessorPil in every number, both layouts", async () => {
  const siglip = readArrays("siglip/arrays.safetensors");
  for (const layout of ["model", "v5_layout"]) {
    const processor = loadImageProcessor(join(ORACLE, "siglip", layout));
    for (const [file, name, options] of [
      ["rgb_wide.png", "0.pixel_values", {}],
      ["rgba.png", "2.raw.pixel_values", { alpha: "white" }],
      ["exif_rotated.jpg", "4.pixel_values", {}],
    ] as const) {
      const got = processor.process(await readPicture(join(ORACLE, "images", file), options));
      assert.deepEqual(channelsFirst(got), siglip.get(`image.image_processor.${name}`)!.floats(), file);
    }
  }
});

test("process() equals transformers for other sizes, crops larger than the picture, filters and flags", () => {
  const made = readCases("processor/cases.json").cases; // test/oracle/processor/make.py
  assert.equal(made.length, 72);
  for (const c of made) {
    const path = folder({ "preprocessor_config.json": { image_processor_type: c.class, ...c.config } });
    const processor = loadImageProcessor(path);
    assert.deepEqual([processor.size.height, processor.size.width, 3], c.shape);
    const got = processor.process(pattern(...(c.pattern as [number, number])));
    const digest = createHash("sha256").update(new Uint8Array(got.buffer)).digest("hex");
    const mean = got.reduce((sum, v) => sum + v, 0) / got.length;
    assert.equal(digest, c.sha256, `${JSON.stringify(c.config)} on ${c.pattern}: mean ${mean}, expected ${c.mean}`);
  }
});

test("crop() is what process() normalises", () => {
  const processor = loadImageProcessor(join(ORACLE, "clip", "model"));
  const picture = pattern(91, 60);
  const seen = processor.crop(picture);
  assert.deepEqual([seen.width, seen.height, seen.data.length], [56, 56, 56 * 56 * 3]);
  const values = processor.process(picture);
  const [c, i] = [1, 1234 * 3];
  const want = (seen.data[i + c] / 255 - processor.mean[c]) / processor.std[c];
  assert.ok(Math.abs(values[i + c] - want) < 1e-6);
});

test("process() takes pictures of extreme shapes at the cost of what the model sees", () => {
  const processor = loadImageProcessor(join(ORACLE, "clip", "model"));
  const start = performance.now();
  for (const [width, height] of [
    [1, 1],
    [1, 20_000],
    [20_000, 1],
    [65_535, 1],
    [3, 16_000],
  ])
    assert.equal(processor.process(pattern(width, height)).length, 56 * 56 * 3);
  assert.ok(performance.now() - start < 1000);
});

const CLIP = { image_processor_type: "CLIPImageProcessor" };

test("loadImageProcessor() reads every spelling of size and crop", () => {
  const sizeOf = (config: object, extra: object = {}) => loadImageProcessor(folder({ "preprocessor_config.json": config, ...extra })).size;
  assert.deepEqual(sizeOf({ feature_extractor_type: "CLIPFeatureExtractor" }), { height: 224, width: 224 });
  assert.deepEqual(sizeOf({ ...CLIP, size: 60, crop_size: 50 }), { height: 50, width: 50 });
  assert.deepEqual(sizeOf({ ...CLIP, size: { shortest_edge: 60 }, crop_size: { height: 40, width: 50 } }), { height: 40, width: 50 });
  assert.deepEqual(sizeOf({ image_processor_type: "ViTImageProcessorFast", size: 60 }), { height: 60, width: 60 });
  assert.deepEqual(sizeOf({ size: 384 }, { "config.json": { model_type: "siglip" } }), { height: 384, width: 384 });
  const nested = folder({ "processor_config.json": { image_processor: { ...CLIP, crop_size: 48 } }, "preprocessor_config.json": CLIP });
  assert.deepEqual(loadImageProcessor(nested).size, { height: 48, width: 48 }); // nested first, as transformers 5 does
  const named = folder({
    "processor_config.json": { processor_class: "CLIPProcessor" },
    "preprocessor_config.json": { ...CLIP, crop_size: 47 },
  });
  assert.deepEqual(loadImageProcessor(named).size, { height: 47, width: 47 });
});

test("loadImageProcessor() lists every misfit at once", () => {
  const path = folder({
    "preprocessor_config.json": {
      ...CLIP,
      sise: 3,
      size: { longest_edge: 4 },
      crop_size: -1,
      resample: 9,
      do_resize: "yes",
      image_std: [1, 0, 1],
      do_flip_channel_order: true,
      do_pad: true,
      pad_size: null,
      crop_pct: 0.9,
    },
  });
  assert.throws(
    () => loadImageProcessor(path),
    (error: Error) => {
      for (const line of [
        /preprocessor_config\.json cannot be followed/,
        /sise: unknown; did you mean size\?/,
        /size: \{"longest_edge":4\}, expected a number, \{"shortest_edge"\} or/,
        /crop_size: -1, expected/,
        /resample: 9, expected 0 to 5/,
        /do_resize: "yes", expected true or false/,
        /image_std: \[1,0,1\], expected three numbers above 0/,
        /do_flip_channel_order: unknown, and it may change the numbers/,
        /do_pad: true is not supported, only false/,
        /crop_pct: unknown/,
      ])
        assert.match(error.message, line);
      assert.doesNotMatch(error.message, /pad_size/);
      return true;
    },
  );
});

test("loadImageProcessor() refuses what cannot make a batch, other families, and folders without a word on pictures", () => {
  const load = (files: Record<string, unknown>) => () => loadImageProcessor(folder(files));
  const flat = (config: object) => load({ "preprocessor_config.json": config });
  assert.throws(flat({ ...CLIP, do_center_crop: false }), /different sizes and cannot form a batch/);
  assert.throws(
    flat({ image_processor_type: "LlavaNextImageProcessor" }),
    /the LlavaNext family cuts pictures into tiles; use loadTileProcessor\(folder\)/,
  );
  assert.throws(flat({ image_processor_type: "GotOcr2ImageProcessorFast" }), /the GotOcr2 family cuts pictures into tiles/);
  assert.throws(flat({ image_processor_type: "ConvNextImageProcessor" }), /"ConvNextImageProcessor" is not known; supported/);
  assert.throws(flat({ image_processor_type: "__proto__" }), /is not known/);
  assert.throws(flat({ size: 3 }), /no image_processor_type, and no config\.json/);
  assert.throws(flat({ ...CLIP, size: 1e9 }), /size: 1000000000, expected/);
  assert.throws(load({}), /neither preprocessor_config\.json nor processor_config\.json/);
});
