/** From any picture to the numbers that a vision tower was trained on, as the checkpoint's own files say. */
import type { Picture } from "./picture";
import { type ProcessorConfig, readProcessorConfig } from "./processor-config";
import { resize, type Window } from "./resize";

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
 * Resizes, cuts the centre out (with black where the picture is smaller), scales and normalises as transformers' PIL processors do.
 *
 * @throws Error listing every key that is missing, wrong or unknown, or naming a family that is not supported yet.
 */
export function loadImageProcessor(folder: string): ImageProcessor {
  return imageProcessor(readProcessorConfig(folder));
}

/** The processor of a configuration whose values have been checked. */
export function imageProcessor(config: ProcessorConfig): ImageProcessor {
  const { size, mean, std } = config;
  const table = valueTable(config);
  const crop = (picture: Picture): Picture => cropCentre(picture, config);
  const process = (picture: Picture, out = new Float32Array(size.height * size.width * 3)): Float32Array => {
    const { data } = crop(picture);
    if (out.length !== data.length)
      throw new RangeError(`process: out holds ${out.length} numbers, expected ${size.height} x ${size.width} x 3 = ${data.length}`);
    for (let i = 0; i < data.length; i += 3) {
      out[i] = table[data[i]];
      out[i + 1] = table[256 + data[i + 1]];
      out[i + 2] = table[512 + data[i + 2]];
    }
    return out;
  };
  return { size, mean, std, config, process, crop };
}

/** The normalised value of each byte in each channel [3, 256], rounded to float32 where numpy rounds. */
function valueTable({ scale, mean, std }: ProcessorConfig): Float32Array {
  const table = new Float32Array(3 * 256);
  for (let c = 0; c < 3; c++)
    for (let v = 0; v < 256; v++) table[c * 256 + v] = Math.fround(Math.fround(v * scale) - Math.fround(mean[c])) / Math.fround(std[c]);
  return table;
}

/** The size a picture is resized to before the crop. */
function resizedSize({ width, height }: Picture, { resizeTo }: ProcessorConfig): { width: number; height: number } {
  if (resizeTo === null) return { width, height };
  if (typeof resizeTo !== "number") return resizeTo;
  const long = Math.trunc((resizeTo * Math.max(width, height)) / Math.min(width, height)); // Python's int(): towards zero
  return width <= height ? { width: resizeTo, height: long } : { width: long, height: resizeTo };
}

/** Resizes and cuts the centre out, computing only what stays. */
function cropCentre(picture: Picture, config: ProcessorConfig): Picture {
  const { width, height } = config.size;
  const whole = resizedSize(picture, config);
  const left = Math.floor((whole.width - width) / 2); // negative where the crop is larger
  const top = Math.floor((whole.height - height) / 2);
  const window: Window = {
    left: Math.max(left, 0),
    top: Math.max(top, 0),
    width: Math.min(width, whole.width),
    height: Math.min(height, whole.height),
  };
  const seen = resize(picture, whole.width, whole.height, config.filter, window);
  return left >= 0 && top >= 0 ? seen : pad(seen, Math.max(-left, 0), Math.max(-top, 0), width, height);
}

/** The picture on a black one of width x height, its corner at (left, top). */
function pad(picture: Picture, left: number, top: number, width: number, height: number): Picture {
  const data = new Uint8Array(width * height * 3);
  const row = picture.width * 3;
  for (let y = 0; y < picture.height; y++) data.set(picture.data.subarray(y * row, (y + 1) * row), ((top + y) * width + left) * 3);
  return { width, height, data };
}
