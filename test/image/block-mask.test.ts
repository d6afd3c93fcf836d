/** Hidden patches beyond the oracle's masks (test/parity/flava-pretraining.ts): seeds, counts, what is refused. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { random } from "vitrine/data/random";
import { type BlockMaskSettings, blockMask, loadBlockMask } from "vitrine/image/block-mask";
import { messageOf } from "../support/close";
import { scratch } from "../support/scratch";

const FLAVA_FULL: BlockMaskSettings = { rows: 14, columns: 14, total: 75, least: 16, most: 75, aspect: [0.3, 1 / 0.3] };

/** A folder with this preprocessing file. */
function folder(config: object): string {
  const path = scratch();
  writeFileSync(join(path, "preprocessor_config.json"), JSON.stringify(config));
  return path;
}

test("loadBlockMask() has the class's settings where the file is silent, and the file's own", () => {
  const silent = folder({ image_processor_type: "FlavaImageProcessor", mask_group_max_patches: null });
  assert.deepEqual(loadBlockMask(silent), FLAVA_FULL);
  const own = { input_size_patches: 6, total_mask_patches: 20, mask_group_min_patches: 2, mask_group_max_patches: 9 };
  assert.deepEqual(loadBlockMask(folder({ feature_extractor_type: "FlavaFeatureExtractor", ...own, mask_group_min_aspect_ratio: 0.5 })), {
    ...{ rows: 6, columns: 6, total: 20, least: 2, most: 9 },
    aspect: [0.5, 2],
  });
});

test("blockMask() is the same for a seed, another for another, never hides more than asked, and hides blocks", () => {
  const masks = Array.from({ length: 20 }, (_, seed) => blockMask(FLAVA_FULL, random(seed)));
  assert.deepEqual(blockMask(FLAVA_FULL, random(3)), masks[3]);
  assert.equal(new Set(masks.map(String)).size, 20);
  for (const mask of masks) {
    const places = [...mask.keys()].filter((i) => mask[i] === 1);
    assert.ok(places.length > 60 && places.length <= 75, `${places.length} hidden`);
    const beside = places.filter((i) => i % 14 < 13 && mask[i + 1] === 1).length; // about 27 of 75, were patches hidden one by one
    assert.ok(beside > 40, `${beside} hidden patches have a hidden one on their right`);
  }
});

test("loadBlockMask() and blockMask() name everything that cannot be", async () => {
  await messageOf(
    () => loadBlockMask(folder({ image_processor_type: "CLIPImageProcessor" })),
    "only FlavaImageProcessor hides patches, this is CLIP",
  );
  await messageOf(
    () =>
      loadBlockMask(folder({ image_processor_type: "FlavaImageProcessor", input_size_patches: 0, mask_group_min_aspect_ratio: "wide" })),
    "input_size_patches: 0, expected a whole number",
    'mask_group_min_aspect_ratio: "wide", expected a number above 0',
  );
  await messageOf(
    () => blockMask({ ...FLAVA_FULL, rows: 5, least: 1.5, aspect: [2, 1] }, random(0)),
    "least is 1.5, expected a whole number",
    "total is 75, there are 5 x 14 patches",
    "aspect is [2,1], expected two numbers above 0, the smaller first",
  );
});
