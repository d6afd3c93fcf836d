/** The oracle's CLIP and its inputs, and folders that are gone after the tests of a file. */
import { cpSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { tf } from "vitrine/engine";
import { readJson } from "vitrine/files/json";
import { type Clip, load } from "vitrine/models";
import { freshClip } from "vitrine/train/fresh";
import { channelsLast, openOracle, type Oracle } from "../parity/check";
import { scratch } from "./scratch";

export const ORACLE = resolve(__dirname, "..", "oracle");
export const MODEL = join(ORACLE, "clip", "model");
export const oracle = (): Oracle => openOracle(ORACLE, "clip");
export const loadClip = (): Promise<Clip> => load(MODEL);

export type Inputs = { pixels: tf.Tensor4D; ids: tf.Tensor2D; mask: tf.Tensor2D };

/** The inputs of the oracle's forward pass: three pictures, three padded captions. */
export function inputs(from = oracle()): Inputs {
  const ints = (name: string) => {
    const { values, shape } = from.array(name);
    return tf.tensor2d(Int32Array.from(values), shape as [number, number], "int32");
  };
  return { pixels: channelsLast(from.array("forward.pixel_values")), ids: ints("forward.input_ids"), mask: ints("forward.attention_mask") };
}

/** Every picture with every caption. */
export const logits = (model: Clip, { pixels, ids, mask }: Inputs): Float32Array =>
  tf.tidy(() => model.logits(model.encodeImage(pixels), model.encodeText(ids, mask)).dataSync() as Float32Array);

/** Loss of the three pairs. */
export const lossOf = (model: Clip, { pixels, ids, mask }: Inputs): tf.Scalar =>
  model.loss(model.encodeImage(pixels), model.encodeText(ids, mask));

export { scratch };

// biome-ignore lint/suspicious/noExplicitAny: a config is what its test makes of it
type Config = any;

/** A copy of the oracle's CLIP folder with another config. */
export function modelWith(change: (config: Config) => void): string {
  const folder = join(scratch(), "model");
  cpSync(MODEL, folder, { recursive: true });
  const config = readJson(join(folder, "config.json"));
  change(config);
  // JavaScript writes 1.0 as 1, which transformers refuses where it wants a float.
  const text = JSON.stringify(config).replace(/"(initializer_factor|attention_dropout)":(\d+)(?=[,}])/g, '"$1":$2.0');
  writeFileSync(join(folder, "config.json"), text);
  return folder;
}

/** A folder with a new CLIP of random weights: the oracle's config and tokenizer, with a change. */
export async function freshFolder(change: (config: Config) => void = () => {}): Promise<string> {
  const folder = modelWith(change);
  await freshClip(folder, readJson(join(folder, "config.json")), { seed: 1 });
  return folder;
}
