/** From any picture to the numbers that a vision tower was trained on, as the checkpoint's own files say. */
import type { Picture } from "./picture";
import { type Backend, BLIP, type ProcessorConfig, readCodebookConfig, readProcessorConfig } from "./processor-config";
import type { PassOrder } from "./resize";
import { type Canvas, paint, type Size, squared, stretched, type View, wholeView } from "./views";

export type ImageProcessor = {
  /** Of the picture that the model sees, in pixels. */
  size: { height: number; width: number };
  /** Of each colour channel, for values from 0 to 1. */
  mean: number[];
  std: number[];
  /** What it was made from: plain data, from which another thread makes the same processor. Absent: it works in this thread only. */
  config?: ProcessorConfig;
  /** Normalised values [height, width, 3], row by row, in `out` where one is given. */
  process(picture: Picture, out?: Float32Array): Float32Array;
  /** What the model sees, before normalising. */
  crop(picture: Picture): Picture;
};

/**
 * The image processor of a checkpoint folder: `preprocessor_config.json`, or `processor_config.json` as transformers 5 writes it.
 * Pads where the checkpoint pads, resizes, cuts the centre out (with black where the picture is smaller), scales and normalises as
 * transformers' PIL processors do, or with `backend: "torchvision"` as its others do. Families that cut a picture into tiles:
 * `loadTileProcessor()`.
 *
 * @throws Error listing every key that is missing, wrong or unknown, or naming a family that is not supported yet.
 */
export function loadImageProcessor(folder: string, { backend = "pil" as Backend } = {}): ImageProcessor {
  return imageProcessor({ ...readProcessorConfig(folder), backend });
}

/** FLAVA's codebook pictures: the keys `codebook_*` of its file (Lanczos, values in 0.1 to 0.9). */
export function loadCodebookProcessor(folder: string): ImageProcessor {
  return imageProcessor(readCodebookConfig(folder));
}

/**
 * Resized to a square of `side` pixels, bicubic, CLIP's mean and std: BLIP's way, and that of the original ALBEF and MiniGPT-4
 * (`blip2_image_eval`), whose checkpoints come without a preprocessing file.
 */
export function blipProcessor(side: number, { backend = "pil" as Backend } = {}): ImageProcessor & { config: ProcessorConfig } {
  const size = { height: side, width: side };
  const { mean, std } = BLIP;
  const config: ProcessorConfig = {
    ...{ pad: false, resizeTo: size, size, filter: "bicubic", scale: 1 / 255 },
    ...{ mean, std, squeeze: 0, backend, alpha: "white" },
  };
  return { ...imageProcessor(config), config };
}

/** The processor of a configuration whose values have been checked. */
export function imageProcessor(config: ProcessorConfig): ImageProcessor {
  const { size, mean, std } = config;
  const table = valueTable(config);
  const crop = (picture: Picture): Picture => paint(picture, [plainView(picture, config)], orderOf(config))[0];
  const process = (picture: Picture, out = new Float32Array(size.height * size.width * 3)): Float32Array => {
    const seen = crop(picture);
    if (out.length !== seen.data.length)
      throw new RangeError(`process: out holds ${out.length} numbers, expected ${size.height} x ${size.width} x 3 = ${seen.data.length}`);
    return normalise(seen, table, out);
  };
  return { size, mean, std, config, process, crop };
}

/** The normalised value of each byte in each channel [3, 256], rounded to float32 where numpy rounds. */
export function valueTable({ scale, mean, std, squeeze }: ProcessorConfig): Float32Array {
  const table = new Float32Array(3 * 256);
  for (let c = 0; c < 3; c++)
    for (let v = 0; v < 256; v++) {
      const value = Math.fround(Math.fround(Math.fround(v * scale) - Math.fround(mean[c])) / Math.fround(std[c]));
      table[c * 256 + v] = squeeze ? Math.fround(Math.fround(1 - 2 * squeeze) * value) + Math.fround(squeeze) : value;
    }
  return table;
}

/** A picture's bytes as the table's values. -> [height, width, 3] in `out` from `at` on */
export function normalise({ data }: Picture, table: Float32Array, out: Float32Array, at = 0): Float32Array {
  for (let i = 0, o = at; i < data.length; i += 3, o += 3) {
    out[o] = table[data[i]];
    out[o + 1] = table[256 + data[i + 1]];
    out[o + 2] = table[512 + data[i + 2]];
  }
  return out;
}

/** torchvision resizes along rows first, whatever the sizes. */
export const orderOf = ({ backend }: ProcessorConfig): PassOrder => (backend === "torchvision" ? "rows-first" : "pillow");

/** The size a picture is resized to before the crop. */
function resizedSize({ width, height }: Size, { resizeTo }: ProcessorConfig): Size {
  if (resizeTo === null) return { width, height };
  if (typeof resizeTo !== "number") return resizeTo;
  const long = Math.trunc((resizeTo * Math.max(width, height)) / Math.min(width, height)); // Python's int(): towards zero
  return width <= height ? { width: resizeTo, height: long } : { width: long, height: resizeTo };
}

/** The bytes that LLaVA pads with: int(255 * mean). */
export const meanColour = (mean: number[]): [number, number, number] => mean.map((m) => Math.trunc(m * 255)) as [number, number, number];

/** How a picture is resized and its centre cut out, as a view of it. */
export function plainView(original: Size, config: ProcessorConfig): View {
  const { width, height } = config.size;
  const fill = meanColour(config.mean);
  const square = Math.max(original.width, original.height);
  const padded = config.pad ? { width: square, height: square } : original;
  const whole = resizedSize(padded, config);
  const canvas: Canvas = config.pad ? squared(original, whole, config.filter, fill) : stretched(original, whole, config.filter);
  const after = { left: -Math.floor((whole.width - width) / 2), top: -Math.floor((whole.height - height) / 2), width, height };
  return wholeView({ ...canvas, after }, "base");
}
