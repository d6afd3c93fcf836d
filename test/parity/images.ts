/** Pictures as the model sees them, against the reference's PIL and torchvision processors: every label of a family's `images[]`. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Backend, ProcessorConfig } from "vitrine/image/processor-config";
import { readPicture } from "vitrine/image/picture";
import { blipProcessor, imageProcessor } from "vitrine/image/processor";
import { anyresTokens } from "vitrine/image/anyres";
import { bestCanvas } from "vitrine/image/grids";
import { asTileProcessor, loadAnyProcessor, type Tiled, type TileOverrides, type TileProcessor } from "vitrine/image/tiles";
import { type Checks, type Oracle, PIXELS_PIL, PIXELS_TORCHVISION } from "./check";

type Case = { file: string; tiles?: number; grid_columns_rows?: [number, number] } & { [key: string]: string };
type Part = { label: string; arguments?: TileOverrides; cases: Case[] };
type Cutter = Pick<TileProcessor, "tile" | "layout"> & { alpha: "white" | "refuse" };

export async function checkImages(oracle: Oracle, checks: Checks): Promise<void> {
  for (const part of (oracle.cases.images ?? []) as Part[])
    for (const layout of layoutsOf(oracle)) {
      const [pil, torchvision] = (["pil", "torchvision"] as const).map((backend) => cutterOf(oracle, layout, part, backend));
      for (const c of part.cases) await checkCase(oracle, checks, pil, torchvision, part, c, layout);
    }
  if (oracle.cases.anyres_table) checkAnyresTable(oracle, checks);
}

/** `v5_layout` is there where transformers has the family and writes its files. */
function layoutsOf({ folder }: Oracle): string[] {
  const isComplete =
    existsSync(join(folder, "v5_layout", "processor_config.json")) || existsSync(join(folder, "v5_layout", "preprocessor_config.json"));
  return isComplete ? ["model", "v5_layout"] : ["model"];
}

/** The folder's own processor; ALBEF's and MiniGPT-4's files have none, and their code does what BLIP's does, at the size of the tower. */
function cutterOf(oracle: Oracle, layout: string, { cases }: Part, backend: Backend): Cutter {
  const folder = join(oracle.folder, layout);
  if (["albef", "minigpt4"].includes(oracle.family)) {
    return cutterFor(blipProcessor(oracle.array(cases[0].pixel_values).shape.at(-1) as number, { backend }).config);
  }
  const found = loadAnyProcessor(folder, { backend });
  if (found.kind === "tiles") return { ...found.processor, alpha: found.processor.config.view.alpha };
  return cutterFor(found.processor.config as ProcessorConfig);
}

const cutterFor = (config: ProcessorConfig): Cutter => ({ ...asTileProcessor({ ...imageProcessor(config), config }), alpha: config.alpha });

async function checkCase(
  oracle: Oracle,
  checks: Checks,
  cutter: Cutter,
  torchvision: Cutter,
  part: Part,
  c: Case,
  layout: string,
): Promise<void> {
  const path = join(oracle.root, c.file);
  const label = part.label === "image_processor" ? "" : ` ${part.label}`;
  const title = `${layout}${label}: ${c.file}`;
  // The label "whole" of internvl_hf is what its image processor does when called alone; the model's own processor always cuts.
  const overrides = { ...part.arguments, ...(part.label === "whole" ? { crop_to_patches: false } : {}) };
  const tiled = cutter.tile(await readPicture(path), overrides);
  const pixels = (name: string, key: string, got: Tiled, tolerance: typeof PIXELS_PIL) => {
    const want = oracle.array(c[key]);
    const [C, H, W] = want.shape.slice(-3);
    const shape = [want.values.length / (C * H * W), H, W, C];
    checks.close(name, got.pixels, channelsLast(want), tolerance, { got: [got.count, got.size.height, got.size.width, 3], want: shape });
  };
  if (c.pixel_values) pixels(title, "pixel_values", tiled, PIXELS_PIL);
  if (c["pixel_values.torchvision"])
    pixels(`${title} (torchvision)`, "pixel_values.torchvision", torchvision.tile(await readPicture(path), overrides), PIXELS_TORCHVISION);
  if (c["raw.pixel_values"])
    pixels(
      `${title} (as stored)`,
      "raw.pixel_values",
      cutter.tile(await readPicture(path, { exif: false, alpha: cutter.alpha }), overrides),
      PIXELS_PIL,
    );
  if (c["raw.error"]) {
    const error = await readPicture(path, { exif: false, alpha: cutter.alpha }).then(
      () => "it was read",
      (e: Error) => e.message,
    );
    checks.exact(`${title} (as stored, refused)`, 1, /transparen/.test(error) ? [] : [error]);
  }
  checkNumbers(oracle, checks, title, tiled, c);
}

/** Counts, grids and sizes. */
function checkNumbers(oracle: Oracle, checks: Checks, title: string, { count, grid, original }: Tiled, c: Case): void {
  const got: Record<string, unknown> = {
    num_patches: [count],
    "num_patches.torchvision": [count],
    grids: [grid.rows, grid.columns],
    "grids.torchvision": [grid.rows, grid.columns],
    image_sizes: [original.height, original.width],
    "image_sizes.torchvision": [original.height, original.width],
  };
  const wrong: string[] = [];
  let total = 0;
  const compare = (key: string, ours: unknown, theirs: unknown) => {
    total++;
    if (String(ours) !== String(theirs)) wrong.push(`${key}: ${ours}, expected ${theirs}`);
  };
  for (const key of Object.keys(got).filter((key) => c[key] !== undefined)) compare(key, got[key], [...oracle.array(c[key]).values]);
  if (c.grid_columns_rows) compare("grid_columns_rows", [grid.columns, grid.rows], c.grid_columns_rows);
  if (c.tiles !== undefined) compare("tiles", count, c.tiles);
  if (total) checks.exact(`${title} (counts)`, total, wrong);
}

/** Which canvas is chosen, and how many tokens the picture becomes, for sizes of all shapes. */
function checkAnyresTable(oracle: Oracle, checks: Checks): void {
  const { pinpoints_hw, rows, vision_aspect_ratio } = oracle.cases.anyres_table;
  const found = loadAnyProcessor(join(oracle.folder, "model"));
  if (found.kind !== "tiles") throw new Error(`${oracle.folder}/model: expected a processor that cuts into tiles`);
  const side = tokensASide(oracle);
  const maxTiles = vision_aspect_ratio ? Number(vision_aspect_ratio.replace("anyres_max_", "")) : null;
  const canvases = (pinpoints_hw as [number, number][]).map(([height, width]) => ({ height, width }));
  const wrong: string[] = [];
  for (const {
    size_hw: [height, width],
    best_resolution_hw,
    image_tokens,
  } of rows) {
    const best = bestCanvas({ height, width }, canvases);
    const { grid } = found.processor.layout({ height, width });
    const { total } = anyresTokens({ height, width }, grid, side, { maxTiles });
    const got = [best.height, best.width, grid.rows * found.processor.size.height, grid.columns * found.processor.size.width, total];
    const want = [...best_resolution_hw, ...best_resolution_hw, image_tokens];
    if (String(got) !== String(want)) wrong.push(`${height} x ${width}: ${got}, expected ${want}`);
  }
  checks.exact("canvases and tokens of many sizes", rows.length, wrong);
}

/** Features a side of one tile: picture size over patch size, as the tower computes it. */
function tokensASide({ folder }: Oracle): number {
  const { vision_config } = JSON.parse(readFileSync(join(folder, "model", "config.json"), "utf8"));
  return Math.floor(vision_config.image_size / vision_config.patch_size);
}

/** [..., C, H, W] -> the values of [..., H, W, C] */
function channelsLast({ values, shape }: { values: Float32Array; shape: number[] }): Float32Array {
  const [C, H, W] = shape.slice(-3);
  const out = new Float32Array(values.length);
  const each = C * H * W;
  for (let start = 0; start < values.length; start += each)
    for (let c = 0; c < C; c++) for (let i = 0; i < H * W; i++) out[start + i * C + c] = values[start + c * H * W + i];
  return out;
}
