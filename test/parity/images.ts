/** Pictures as the model sees them, against the reference's PIL and torchvision processors. */
import { join } from "node:path";
import { loadImageProcessor } from "vitrine/image/processor";
import { readPicture } from "vitrine/image/picture";
import { type Checks, type Oracle, PIXELS_PIL, PIXELS_TORCHVISION } from "./check";

type Case = { file: string; pixel_values: string; "pixel_values.torchvision"?: string; "raw.pixel_values"?: string };

export async function checkImages(oracle: Oracle, checks: Checks): Promise<void> {
  for (const part of oracle.cases.images ?? []) {
    for (const layout of ["model", "v5_layout"]) {
      const processor = loadImageProcessor(join(oracle.folder, layout));
      for (const c of part.cases as Case[]) {
        const path = join(oracle.root, c.file);
        const title = `${layout}: ${c.file}`;
        const pixels = processor.process(await readPicture(path));
        checks.close(title, pixels, last(oracle.array(c.pixel_values)), PIXELS_PIL);
        const torchvision = c["pixel_values.torchvision"];
        if (torchvision) checks.close(`${title} (torchvision)`, pixels, last(oracle.array(torchvision)), PIXELS_TORCHVISION);
        const raw = c["raw.pixel_values"];
        if (raw)
          checks.close(
            `${title} (as stored)`,
            processor.process(await readPicture(path, { exif: false, alpha: "white" })),
            last(oracle.array(raw)),
            PIXELS_PIL,
          );
      }
    }
  }
}

/** [1, C, H, W] -> the values of [H, W, C] */
function last({ values, shape }: { values: Float32Array; shape: number[] }): Float32Array {
  const [C, H, W] = shape.slice(-3);
  const out = new Float32Array(values.length);
  for (let c = 0; c < C; c++) for (let i = 0; i < H * W; i++) out[i * C + c] = values[c * H * W + i];
  return out;
}
