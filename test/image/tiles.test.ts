import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";

import { join } from "node:path";
import { test } from "node:test";
import { anyresTokens, unpad } from "vitrine/image/anyres";
import { smartResize } from "vitrine/image/native";
import type { Picture } from "vitrine/image/picture";
import { imageProcessor, loadCodebookProcessor, loadImageProcessor } from "vitrine/image/processor";
import type { ProcessorConfig } from "vitrine/image/processor-config";
import { asTileProcessor, loadAnyProcessor, loadTileProcessor, padTiles, tileMessage, type TileProcessor } from "vitrine/image/tiles";
import { readCases } from "./arrays";
import { pattern } from "./pattern";
import { scratch } from "../support/scratch";

/** A folder with these files. */
function folder(files: Record<string, unknown>): string {
  const path = scratch();
  for (const [name, value] of Object.entries(files)) writeFileSync(join(path, name), JSON.stringify(value));
  return path;
}
const flat = (config: object) => folder({ "preprocessor_config.json": config });
const digest = (values: Float32Array) => createHash("sha256").update(new Uint8Array(values.buffer)).digest("hex");
const made = readCases("processor/tiles.json"); // test/oracle/processor/make_tiles.py

test("tile() equals transformers' PIL processors in every number: grids, thumbnails, canvases, padding, overrides", () => {
  assert.equal(made.cases.length, 135);
  for (const { class: kind, config, arguments: overrides, pattern: size, ...want } of made.cases) {
    const found = loadAnyProcessor(flat({ image_processor_type: kind, ...config }));
    const processor =
      found.kind === "tiles" ? found.processor : asTileProcessor({ ...found.processor, config: found.processor.config as ProcessorConfig });
    const got = processor.tile(pattern(...(size as [number, number])), overrides);
    const name = `${kind} ${JSON.stringify(config)} ${JSON.stringify(overrides)} on ${size}`;
    assert.deepEqual([got.count, got.size.height, got.size.width, 3], want.shape, name);
    if (want.grid) assert.deepEqual([got.grid.rows, got.grid.columns], want.grid, name);
    assert.equal(digest(got.pixels), want.sha256, `${name}: mean ${want.mean}`);
    assert.deepEqual(processor.layout({ width: size[0], height: size[1] }, overrides).tiles, got.tiles, name);
  }
});

const LLAVA = { model_type: "llava", mm_vision_tower: "openai/clip-vit-large-patch14-336" };

test("tile() cuts LLaVA-1.5-HD's padded square as the original code does, the stretched picture first", () => {
  for (const { tile, side, pattern: size, ...want } of made.highres) {
    const processor = loadTileProcessor(
      folder({
        "config.json": { model_type: "llava", image_aspect_ratio: "highres", image_grid_pinpoints: `${tile},${side}` },
        "preprocessor_config.json": { image_processor_type: "CLIPImageProcessor", size: tile, crop_size: tile },
      }),
    );
    const got = processor.tile(pattern(...(size as [number, number])));
    assert.deepEqual([got.count, got.size.height, got.size.width, 3], want.shape);
    assert.equal(digest(got.pixels), want.sha256, `${side} on ${size}: mean ${want.mean}`);
    assert.deepEqual(
      got.tiles.map(({ kind }) => kind),
      ["base", ...Array(want.grid[0] ** 2).fill("tile")],
    );
  }
});

test("loadCodebookProcessor() equals FLAVA's codebook pictures", () => {
  const path = flat({
    image_processor_type: "FlavaImageProcessor",
    codebook_size: { height: 16, width: 20 },
    codebook_crop_size: { height: 14, width: 14 },
  });
  assert.equal(made.codebook.length, 3);
  for (const { pattern: size, ...want } of made.codebook) {
    const processor = loadCodebookProcessor(path);
    assert.deepEqual([1, processor.size.height, processor.size.width, 3], want.shape);
    const got = processor.process(pattern(...(size as [number, number])));
    const mean = got.reduce((sum, v) => sum + v, 0) / got.length;
    assert.ok(Math.abs(mean - want.mean) < 1e-6, `${mean}, expected ${want.mean}`);
    assert.equal(digest(got), want.sha256);
  }
  assert.equal(loadImageProcessor(path).config?.alpha, "refuse");
  assert.throws(
    () => loadCodebookProcessor(flat({ image_processor_type: "CLIPImageProcessor" })),
    /only FlavaImageProcessor has a codebook/,
  );
});

test("smartResize() equals Ovis2.5's, and leaves no side without pixels where that would", () => {
  assert.equal(made.native.length, 120);
  let thin = 0;
  for (const { limits, size_hw, resized_hw } of made.native) {
    const [factor, min_pixels, max_pixels] = limits;
    const got = smartResize({ height: size_hw[0], width: size_hw[1] }, { factor, min_pixels, max_pixels });
    if (resized_hw.includes(0)) {
      thin++;
      assert.ok(
        Math.min(got.height, got.width) === factor &&
          got.height * got.width <= max_pixels &&
          got.height % factor === 0 &&
          got.width % factor === 0,
        `${size_hw}`,
      );
    } else assert.deepEqual([got.height, got.width], resized_hw, `${size_hw} within ${limits}`);
  }
  assert.ok(thin > 0 && thin < 40, `${thin}`);
});

/** Red tells the column, green the row, `step` levels a pixel; blue is 200, which no padding has. */
function coordinates(width: number, height: number, step: number): Picture {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i += 3) data.set([x * step, y * step, 200], i);
  return { width, height, data };
}

const NEXT = { image_processor_type: "LlavaNextImageProcessor", size: { shortest_edge: 40 }, crop_size: { height: 40, width: 40 } };
const ONEVISION = { image_processor_type: "LlavaOnevisionImageProcessor", size: { height: 40, width: 40 } };
const PINPOINTS = {
  image_grid_pinpoints: [
    [40, 80],
    [80, 40],
    [80, 80],
    [120, 40],
  ],
};
const SCHEMES: [name: string, make: () => Pick<TileProcessor, "tile">, overrides?: object][] = [
  ["InternVL", () => loadTileProcessor(internvl())],
  [
    "Ovis2",
    () => loadTileProcessor(flat({ image_processor_type: "Ovis2ImageProcessor", crop_to_patches: true, size: { height: 30, width: 30 } })),
  ],
  ["LLaVA-NeXT", () => loadTileProcessor(flat({ ...NEXT, ...PINPOINTS }))],
  ["LLaVA-OneVision", () => loadTileProcessor(flat({ ...ONEVISION, ...PINPOINTS }))],
  ["LLaVA-OneVision, several pictures", () => loadTileProcessor(flat({ ...ONEVISION, ...PINPOINTS })), { pictures: 2 }],
  [
    "LLaVA-1.5-HD",
    () => loadTileProcessor(folder({ "config.json": { ...LLAVA, image_aspect_ratio: "highres", image_grid_pinpoints: "336,700" } })),
  ],
  [
    "Ovis2.5",
    () =>
      loadTileProcessor(
        folder({
          "config.json": { model_type: "ovis2_5", vit_config: { patch_size: 8, hidden_stride: 2 } },
          "preprocessor_config.json": { min_pixels: 4096, max_pixels: 9000 },
        }),
      ),
  ],
  ["CLIP", () => plainTiles({ image_processor_type: "CLIPImageProcessor", size: 36, crop_size: 30 })],
  ["CLIP, crop larger than the picture", () => plainTiles({ image_processor_type: "CLIPImageProcessor", size: 30, crop_size: 70 })],
  ["LLaVA-1.5, padded", () => plainTiles({ image_processor_type: "LlavaImageProcessor", do_pad: true, size: 40, crop_size: 40 })],
];
function internvl(extra: object = {}): string {
  const image_processor = {
    image_processor_type: "GotOcr2ImageProcessorFast",
    crop_to_patches: false,
    size: { height: 28, width: 28 },
    ...extra,
  };
  return folder({
    "processor_config.json": { image_processor, processor_class: "InternVLProcessor" },
    "config.json": { model_type: "internvl" },
  });
}
function plainTiles(config: object) {
  const processor = loadImageProcessor(flat(config));
  return asTileProcessor({ ...processor, config: processor.config as ProcessorConfig });
}

test("each pixel of a tile comes from where its box says, and none of the picture from the padding", () => {
  for (const [name, make, overrides] of SCHEMES)
    for (const [width, height, step] of [
      [90, 41, 2],
      [50, 84, 3],
      [63, 63, 4],
    ]) {
      const { pictures, tiles, size } = make().tile(coordinates(width, height, step), overrides);
      let checked = 0;
      for (const [i, { box, inside }] of tiles.entries()) {
        const across = box.width / size.width;
        const down = box.height / size.height;
        for (let v = 0; v < size.height; v++)
          for (let u = 0; u < size.width; u++) {
            const [x, y] = [box.left + (u + 0.5) * across - 0.5, box.top + (v + 0.5) * down - 0.5];
            const [red, green, blue] = pictures[i].data.subarray((v * size.width + u) * 3);
            const outside =
              u + 1 <= inside.left || u >= inside.left + inside.width || v + 1 <= inside.top || v >= inside.top + inside.height;
            if (outside) assert.ok(blue < 195 || distance(x, y, width, height) < 3 * Math.max(1, across), `${name}: padding at ${u}, ${v}`);
            const edge = 2 * Math.max(1, across, down); // bicubic looks that far, and at the edges there is less to see
            if (x < edge || y < edge || x > width - 1 - edge || y > height - 1 - edge) continue;
            const off = Math.max(Math.abs(red / step - x), Math.abs(green / step - y));
            assert.ok(off <= 1 / step + 0.1, `${name}, ${width} x ${height}, tile ${i}, pixel ${u}, ${v}: ${off} pixels off`);
            checked++;
          }
      }
      assert.ok(checked > 100, `${name}: ${checked} pixels checked`);
    }
});

/** How far outside the picture a point is. */
const distance = (x: number, y: number, width: number, height: number): number => Math.max(-x, -y, x - (width - 1), y - (height - 1));

test("the tiles of a grid cover the picture once, whatever is padded", () => {
  for (const [name, make, overrides] of SCHEMES.slice(0, 7))
    for (const [width, height] of [
      [90, 41],
      [50, 84],
      [1, 400],
      [640, 480],
    ]) {
      const { tiles, size, grid, count } = make().tile(pattern(width, height), overrides);
      const own = tiles.filter(({ kind }) => kind === "tile");
      const used = own.length ? own : tiles;
      assert.equal(used.length, grid.rows * grid.columns, name);
      const area = used.reduce(
        (sum, { box, inside }) => sum + (inside.width / size.width) * box.width * (inside.height / size.height) * box.height,
        0,
      );
      if (name !== "LLaVA-1.5-HD") assert.ok(Math.abs(area / (width * height) - 1) < 1e-9, `${name}: ${area} of ${width * height}`);
      assert.ok(count >= used.length && count <= used.length + 1);
      for (const { row, column } of own) assert.deepEqual([row < grid.rows, column < grid.columns], [true, true]);
      if (own.length)
        assert.deepEqual(
          own.map(({ row, column }) => row * grid.columns + column),
          own.map((_, i) => i),
          name,
        );
    }
});

test("InternVL's processor cuts although its file says crop_to_patches: false; GOT-OCR2's own does not", () => {
  const picture = pattern(90, 41);
  const tiled = loadTileProcessor(internvl()).tile(picture);
  assert.deepEqual([tiled.grid, tiled.count, tiled.tiles.at(-1)?.kind], [{ rows: 2, columns: 4 }, 9, "thumbnail"]);
  const alone = loadTileProcessor(flat({ image_processor_type: "GotOcr2ImageProcessor", size: { height: 28, width: 28 } }));
  assert.deepEqual([alone.tile(picture).count, alone.tile(picture, { crop_to_patches: true }).count], [1, 9]);
});

test("loadTileProcessor() reads InternVL's original config.json, with or without thumbnail and tiling", () => {
  const chat = {
    model_type: "internvl_chat",
    force_image_size: 28,
    dynamic_image_size: true,
    use_thumbnail: true,
    min_dynamic_patch: 1,
    max_dynamic_patch: 6,
  };
  const load = (extra: object, files: object = {}) => loadTileProcessor(folder({ "config.json": { ...chat, ...extra }, ...files }));
  const picture = pattern(90, 41);
  assert.deepEqual(
    load({})
      .tile(picture)
      .tiles.map(({ kind }) => kind),
    ["tile", "tile", "thumbnail"],
  );
  assert.deepEqual(
    load({ use_thumbnail: false })
      .tile(picture)
      .tiles.map(({ kind }) => kind),
    ["tile", "tile"],
  );
  assert.deepEqual(
    load({ dynamic_image_size: false })
      .tile(picture)
      .tiles.map(({ box }) => box),
    [{ left: 0, top: 0, width: 90, height: 41 }],
  );
  const padded = load({ dynamic_image_size: false, pad2square: true }).tile(picture).tiles[0];
  assert.deepEqual(padded.box, { left: 0, top: -24, width: 90, height: 90 });
  assert.deepEqual(load({}, { "preprocessor_config.json": { image_mean: [0.5, 0.5, 0.5] } }).mean, [0.5, 0.5, 0.5]);
  assert.throws(
    () => load({ max_dynamic_patch: 0, use_thumbnail: 1 }),
    /max_dynamic_patch: 0[\s\S]*use_thumbnail: 1|use_thumbnail: 1[\s\S]*max_dynamic_patch/,
  );
});

test("LLaVA's original config.json: its tower's processor, pad, and anyres with pinpoints of (width, height)", () => {
  const load = (extra: object) => loadAnyProcessor(folder({ "config.json": { ...LLAVA, ...extra } }));
  const plain = load({});
  assert.ok(plain.kind === "plain" && !plain.processor.config?.pad && plain.processor.size.height === 336);
  const pad = load({ image_aspect_ratio: "pad" });
  assert.ok(pad.kind === "plain" && pad.processor.config?.pad);
  const anyres = load({
    image_aspect_ratio: "anyres",
    image_grid_pinpoints: [
      [336, 1008],
      [1008, 336],
    ],
  });
  assert.ok(anyres.kind === "tiles");
  assert.deepEqual(anyres.processor.layout({ width: 900, height: 300 }).grid, { rows: 1, columns: 3 });
  const wide = load({ image_aspect_ratio: "anyres", image_grid_pinpoints: [[1008, 336]] }); // one canvas, wide
  assert.ok(wide.kind === "tiles");
  assert.deepEqual(wide.processor.layout({ width: 300, height: 900 }).grid, { rows: 1, columns: 3 });
  const siglip = load({ mm_vision_tower: "google/siglip-so400m-patch14-384" });
  assert.ok(siglip.kind === "plain" && siglip.processor.size.height === 384 && siglip.processor.mean[0] === 0.5);
  assert.throws(() => load({ mm_vision_tower: "own/tower" }), /how this tower's pictures are prepared is not known/);
});

test("padTiles() fills up with zeros; tileMessage() leaves several pictures of OneVision whole", () => {
  const processor = loadTileProcessor(flat({ ...ONEVISION, ...PINPOINTS }));
  const [one, two] = [pattern(90, 41), pattern(40, 200)];
  const batch = [processor.tile(one), processor.tile(two)];
  assert.deepEqual(
    batch.map(({ count }) => count),
    [3, 4],
  );
  const { pixels, shape, counts } = padTiles(batch);
  assert.deepEqual(
    [shape, counts],
    [
      [2, 4, 40, 40, 3],
      [3, 4],
    ],
  );
  const each = 40 * 40 * 3;
  assert.deepEqual(pixels.subarray(0, 3 * each), batch[0].pixels);
  assert.ok(pixels.subarray(3 * each, 4 * each).every((v) => v === 0));
  assert.deepEqual(pixels.subarray(4 * each), batch[1].pixels);
  assert.deepEqual(
    tileMessage(processor, [one, two]).map(({ count }) => count),
    [1, 1],
  );
  assert.deepEqual(
    tileMessage(processor, [one]).map(({ count }) => count),
    [3],
  );
  assert.throws(() => tileMessage(processor, []), /no pictures/);
  const native = loadTileProcessor(folder({ "config.json": { model_type: "ovis2_5", vit_config: {} } }));
  assert.throws(() => padTiles([native.tile(pattern(9, 90)), native.tile(pattern(90, 9))]), /tiles of picture 1 are .* of picture 0/);
});

test("unpad() and anyresTokens() count what shows picture", () => {
  assert.deepEqual(unpad({ width: 300, height: 100 }, { rows: 12, columns: 12 }), { top: 4, left: 0, rows: 4, columns: 12 });
  assert.deepEqual(unpad({ width: 100, height: 300 }, { rows: 12, columns: 12 }), { top: 0, left: 4, rows: 12, columns: 4 });
  assert.deepEqual(unpad({ width: 7, height: 7 }, { rows: 8, columns: 8 }), { top: 0, left: 0, rows: 8, columns: 8 });
  const grid = { rows: 3, columns: 3 };
  assert.deepEqual(anyresTokens({ width: 9, height: 9 }, grid, 4), { base: 16, rows: 12, columns: 12, newlines: 12, total: 172 });
  const shrunk = anyresTokens({ width: 9, height: 9 }, grid, 4, { maxTiles: 4 });
  assert.deepEqual([shrunk.rows, shrunk.columns, shrunk.total], [8, 8, 16 + 72]);
  assert.equal(anyresTokens({ width: 9, height: 9 }, grid, 4, { maxTiles: 8 }).rows, 12); // within a tenth of the limit
  assert.equal(anyresTokens({ width: 900, height: 1 }, { rows: 1, columns: 3 }, 4).total, 16);
  assert.throws(
    () => anyresTokens({ width: 900, height: 1 }, { rows: 1, columns: 3 }, 4, { maxTiles: 9 }),
    /0 x 12 features after unpadding/,
  );
});

test("tile() refuses arguments that its family does not know, all at once", () => {
  const processor = loadTileProcessor(internvl());
  const wrong = { use_covering_area_grid: true, max_patches: 0, image_grid_pinpoints: [[1, 2]], pictures: 0, max_patch: 3 } as object;
  assert.throws(
    () => processor.tile(pattern(9, 9), wrong),
    (error: Error) => {
      for (const line of [
        /use_covering_area_grid: not an argument of internvl tiles \(crop_to_patches, min_patches, max_patches\)/,
        /max_patches: 0, expected a whole number from 1/,
        /image_grid_pinpoints: not an argument/,
        /pictures: 0/,
        /max_patch: not an argument/,
      ])
        assert.match(error.message, line);
      return true;
    },
  );
  const next = loadTileProcessor(flat({ ...NEXT, ...PINPOINTS }));
  assert.throws(() => next.tile(pattern(9, 9), { image_grid_pinpoints: [[41, 40]] }), /multiples of the tile's 40 x 40/);
  assert.throws(() => next.tile(pattern(9, 9), { size: { height: 8, width: 8 } }), /size of the tower, 40 x 40/);
});

test("loadTileProcessor() lists every misfit at once, and sends other families to loadImageProcessor()", () => {
  const path = flat({
    ...NEXT,
    image_grid_pinpoints: [[40, 41]],
    max_patches: 3,
    resample: 7,
    do_resize: false,
    aspect_ratio_setting: "x",
  });
  assert.throws(
    () => loadTileProcessor(path),
    (error: Error) => {
      for (const line of [
        /cannot be followed/,
        /multiples of the tile's/,
        /max_patches: unknown/,
        /resample: 7/,
        /do_resize: false/,
        /aspect_ratio_setting/,
      ])
        assert.match(error.message, line);
      return true;
    },
  );
  assert.throws(
    () => loadTileProcessor(flat({ image_processor_type: "CLIPImageProcessor" })),
    /CLIP does not cut pictures into tiles; use loadImageProcessor/,
  );
  assert.throws(() => loadTileProcessor(folder({})), /neither preprocessor_config\.json/);
  const clash = {
    "processor_config.json": { vision_aspect_ratio: "anyres_max_4" },
    "config.json": { vision_aspect_ratio: "anyres_max_9" },
  };
  assert.throws(
    () => loadTileProcessor(folder({ ...clash, "preprocessor_config.json": ONEVISION })),
    /"anyres_max_4", but config\.json says "anyres_max_9"/,
  );
});

test("pictures of extreme shapes are cut at the cost of what the model sees", () => {
  const start = performance.now();
  for (const [name, make, overrides] of SCHEMES)
    for (const [width, height] of [
      [1, 1],
      [1, 4000],
      [4000, 1],
      [3000, 2000],
    ]) {
      const { pixels, count, size } = make().tile(width * height > 1e6 ? blank(width, height) : pattern(width, height), overrides);
      assert.equal(pixels.length, count * size.height * size.width * 3, name);
      assert.ok(pixels.every(Number.isFinite) && count <= 13, name);
    }
  assert.ok(performance.now() - start < 60_000);
});

const blank = (width: number, height: number): Picture => ({ width, height, data: new Uint8Array(width * height * 3) });

test("imageProcessor() of a config is that of the folder", () => {
  const processor = loadImageProcessor(flat({ image_processor_type: "LlavaImageProcessor", do_pad: true, size: 24, crop_size: 24 }));
  const picture = pattern(30, 50);
  assert.deepEqual(imageProcessor(processor.config as ProcessorConfig).process(picture), processor.process(picture));
});
