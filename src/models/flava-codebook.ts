/**
 * The codebook of FLAVA: a frozen convolutional encoder that says which of V visual words stands in each 8 x 8 pixels of a picture, the targets of masked
 * image modelling. It is the encoder of DALL-E (Ramesh et al. 2021). Numbers and names of weights as transformers/models/flava/modeling_flava.py.
 */
import { tf } from "../engine/tf";
import { type Params, repeat, w } from "../nn/spec";
import { readConfig } from "./config";

const DEFAULTS = { num_groups: 4, input_channels: 3, num_blocks_per_group: 2, hidden_size: 256, vocab_size: 8192 };
export type CodebookConfig = typeof DEFAULTS;

/** Of training alone. */
const UNUSED = ["freeze"];
/** Widths of the four groups, in units of hidden_size. The first three halve the picture. */
const WIDTHS = [1, 2, 4, 8];
/** Pixels of a word's side. */
export const WORD_SIDE = 8;

/** The `image_codebook_config` of a FLAVA checkpoint -> config with every value present. @throws listing unhandled keys and impossible sizes */
export const codebookConfig = (raw: unknown, where = "config.json: image_codebook_config"): CodebookConfig =>
  readConfig(raw, DEFAULTS, where, UNUSED);

const convolution = (name: string, [out, inner, side]: [number, number, number]) => ({
  weight: w(`${name}.weight`, [out, inner, side, side]),
  bias: w(`${name}.bias`, [out]),
});

const blockSpec = (name: string, inner: number, out: number) => {
  const narrow = Math.floor(out / 4);
  return {
    ...(inner === out ? {} : { straight: convolution(`${name}.id_path`, [out, inner, 1]) }),
    path: [
      convolution(`${name}.res_path.path.conv_1`, [narrow, inner, 3]),
      convolution(`${name}.res_path.path.conv_2`, [narrow, narrow, 3]),
      convolution(`${name}.res_path.path.conv_3`, [narrow, narrow, 3]),
      convolution(`${name}.res_path.path.conv_4`, [out, narrow, 1]),
    ],
  };
};

/** Every weight by its name in the file; float32 whatever the model's dtype, and read when it is first used. */
export const codebookSpec = ({ input_channels, num_blocks_per_group, hidden_size: D, vocab_size }: CodebookConfig, prefix: string) => ({
  input: convolution(`${prefix}blocks.input`, [D, input_channels, 7]),
  groups: WIDTHS.map((width, g) => {
    const [before, out] = [(WIDTHS[g - 1] ?? 1) * D, width * D];
    return repeat(num_blocks_per_group, (i) =>
      blockSpec(`${prefix}blocks.group_${g + 1}.group.block_${i + 1}`, i === 0 ? before : out, out),
    );
  }),
  output: convolution(`${prefix}blocks.output.conv`, [vocab_size, 8 * D, 1]),
});
export type Codebook = Params<ReturnType<typeof codebookSpec>>;

/** A convolution that keeps the size. x: [B, H, W, in] -> [B, H, W, out] */
const convolve = ({ weight, bias }: Codebook["input"], x: tf.Tensor4D): tf.Tensor4D =>
  tf.conv2d(x, weight.transpose([2, 3, 1, 0]) as tf.Tensor4D, 1, "same").add(bias) as tf.Tensor4D;

/** A residual block whose path begins each convolution with ReLU, and counts for `gain`. x: [B, H, W, in] -> [B, H, W, out] */
function block(p: Codebook["groups"][number][number], x: tf.Tensor4D, gain: number): tf.Tensor4D {
  const way = p.path.reduce((y, conv) => convolve(conv, y.relu()), x);
  return (p.straight ? convolve(p.straight, x) : x).add(way.mul(gain)) as tf.Tensor4D;
}

/**
 * Scores of the visual words. pixels: [B, H, W, 3] of `loadCodebookProcessor()` -> [B, floor(H / 8), floor(W / 8), V]
 *
 * @throws RangeError for a picture of other channels, or of less than a word
 */
export function codebookLogits(p: Codebook, c: CodebookConfig, pixels: tf.Tensor4D): tf.Tensor4D {
  const [, H, W, channels] = pixels.shape;
  if (channels !== c.input_channels || H < WORD_SIDE || W < WORD_SIDE)
    throw new RangeError(
      `codebook: pixels are [${pixels.shape}], expected [B, H, W, ${c.input_channels}] with at least ${WORD_SIDE} rows and columns`,
    );
  const gain = 1 / (c.num_groups * c.num_blocks_per_group) ** 2;
  let x = convolve(p.input, pixels); //                                                                 [B, H, W, D]
  for (const [g, blocks] of p.groups.entries()) {
    for (const one of blocks) x = block(one, x, gain);
    if (g < p.groups.length - 1) x = tf.maxPool(x, 2, 2, "valid"); //                                  [B, H/2, W/2, …]
  }
  return convolve(p.output, x.relu());
}
