/** What the workload `embed-files` reads: photo-sized JPEG files of seeded content, and the file that says how CLIP wants its pictures. */
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import sharp from "sharp";
import { random } from "vitrine/data/random";
import { CHECKPOINT, FILES } from "./work";

const [WIDTH, HEIGHT] = [640, 480];
/** As cameras and data sets store them: 4:2:0 colour, about 90 kB a file. */
const QUALITY = 90;

/** The folder of the pictures inside that of the checkpoints. */
export const filesFolder = (checkpoints: string): string => join(checkpoints, "embed-files");

/** Where each picture is, in the order in which both sides read them. */
export const filePaths = (checkpoints: string, count = FILES): string[] =>
  Array.from({ length: count }, (_, i) => join(filesFolder(checkpoints), `${String(i).padStart(4, "0")}.jpg`));

/** CLIP's own preparation (openai/clip-vit-base-patch32): shortest edge to 224 by bicubic filter, centre crop, CLIP's mean and deviation. */
const PREPROCESSOR = {
  image_processor_type: "CLIPImageProcessor",
  do_resize: true,
  size: { shortest_edge: 224 },
  resample: 3,
  do_center_crop: true,
  crop_size: { height: 224, width: 224 },
  do_rescale: true,
  rescale_factor: 1 / 255,
  do_normalize: true,
  image_mean: [0.48145466, 0.4578275, 0.40821073],
  image_std: [0.26862954, 0.26130258, 0.27577711],
};

/** Makes what is missing: the pictures in a folder beside their place first, so that a stop half-way leaves nothing behind. */
export async function makeFiles(checkpoints: string, signal: AbortSignal, say: (line: string) => void, count = FILES): Promise<void> {
  const paths = filePaths(checkpoints, count);
  const preprocessor = join(checkpoints, CHECKPOINT, "preprocessor_config.json");
  if (!existsSync(preprocessor)) writeFileSync(preprocessor, `${JSON.stringify(PREPROCESSOR, null, 2)}\n`);
  if (paths.every((path) => existsSync(path))) return;
  say(`making ${count} pictures in ${filesFolder(checkpoints)}`);
  const making = join(checkpoints, `.files-${process.pid}`);
  try {
    mkdirSync(making);
    for (const [i, path] of paths.entries()) {
      signal.throwIfAborted();
      const raw = { width: WIDTH, height: HEIGHT, channels: 3 } as const;
      await sharp(scene(i), { raw })
        .jpeg({ quality: QUALITY })
        .toFile(join(making, basename(path)));
    }
    rmSync(filesFolder(checkpoints), { recursive: true, force: true });
    renameSync(making, filesFolder(checkpoints));
  } finally {
    rmSync(making, { recursive: true, force: true });
  }
}

/** Waves of a few lengths and directions, and a camera's grain: neither flat, as a drawing, nor noise, which no JPEG looks like. -> RGB */
export function scene(seed: number): Uint8Array {
  const draw = random(seed);
  const waves = Array.from({ length: 6 }, () => ({
    columns: turns(WIDTH, (draw() - 0.5) / 12, 6 * draw()),
    rows: turns(HEIGHT, (draw() - 0.5) / 12, 0),
    colour: [draw(), draw(), draw()].map((c) => 45 * c),
  }));
  const data = new Uint8ClampedArray(WIDTH * HEIGHT * 3);
  for (let y = 0, i = 0; y < HEIGHT; y++)
    for (let x = 0; x < WIDTH; x++, i += 3) {
      const grain = 16 * (draw() - 0.5);
      let [r, g, b] = [128 + grain, 128 + grain, 128 + grain];
      for (const { columns, rows, colour } of waves) {
        const height = columns.sin[x] * rows.cos[y] + columns.cos[x] * rows.sin[y]; // the sine of the sum of both angles
        r += colour[0] * height;
        g += colour[1] * height;
        b += colour[2] * height;
      }
      data[i] = r;
      data[i + 1] = g;
      data[i + 2] = b;
    }
  return new Uint8Array(data.buffer);
}

/** Sine and cosine of `start`, `start + step`, … */
function turns(count: number, step: number, start: number): { sin: Float64Array; cos: Float64Array } {
  const angles = Float64Array.from({ length: count }, (_, i) => start + i * step);
  return { sin: angles.map(Math.sin), cos: angles.map(Math.cos) };
}
