/** A CLIP checkpoint's weights as a model that takes pixels and token ids, without tokenizer and image processor. */
import { engine } from "../engine/index";
import { tf } from "../engine/tf";
import { type Checkpoint, openCheckpoint } from "../files/checkpoint";
import { type Dtype, disposeParams, loadWeights } from "../nn/spec";
import { noTap, type Tap } from "../nn/tap";
import {
  type ClipConfig,
  type ClipParams,
  clipConfig,
  clipIgnored,
  clipLogits,
  clipSpec,
  contrastiveLoss,
  encodeImage,
  encodeText,
} from "./clip";
import type { Loaded } from "./loaded";

export type ClipWeights = Loaded<ClipParams> & {
  modelType: "clip";
  config: ClipConfig;
  /** Rows and columns of patches in a picture of the checkpoint's own size. */
  grid: [number, number];
  /** Pictures [B, H, W, 3], normalised as the checkpoint's image processor does -> [B, projection_dim], not normalised. */
  encodeImage(pixels: tf.Tensor4D, tap?: Tap): tf.Tensor2D;
  /** Token ids int32 [B, N] and mask int32 [B, N] -> [B, projection_dim], not normalised. */
  encodeText(ids: tf.Tensor2D, mask?: tf.Tensor2D, tap?: Tap): tf.Tensor2D;
  /** Scaled cosines of every picture with every text. [B, d], [T, d] -> [B, T] */
  logits(images: tf.Tensor2D, texts: tf.Tensor2D): tf.Tensor2D;
  /** Symmetric contrastive loss of matching rows. [B, d], [B, d] -> scalar */
  loss(images: tf.Tensor2D, texts: tf.Tensor2D): tf.Scalar;
  /** The same model around another parameter tree (with adapters attached or merged). Shares everything else. */
  with(params: ClipParams): ClipWeights;
};

/**
 * Loads config.json and the weights of a CLIP folder; it needs no tokenizer or preprocessor file.
 *
 * @throws when the folder holds another family, or weights and config do not fit: every misfit at once
 */
export async function loadClipWeights(folder: string, dtype: Dtype = "float32"): Promise<ClipWeights> {
  await engine();
  const checkpoint = openCheckpoint(folder);
  try {
    const { model_type: found } = checkpoint.config;
    if (found !== "clip")
      throw new Error(`${folder}/config.json: model_type is ${JSON.stringify(found)}; loadClipWeights reads "clip", load() every family`);
    return clipWeights(checkpoint, dtype);
  } finally {
    checkpoint.close();
  }
}

/** The model in an open checkpoint of the family. @throws listing every misfit of config and weights */
export function clipWeights({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype): ClipWeights {
  const config = clipConfig(raw);
  const spec = clipSpec(config);
  const params = loadWeights(spec, tensors, { dtype, ignore: clipIgnored, where: folder });
  const side = Math.floor(config.vision_config.image_size / config.vision_config.patch_size);
  const around = (params: ClipParams): ClipWeights => ({
    modelType: "clip",
    folder,
    dtype,
    config,
    spec,
    params,
    grid: [side, side],
    encodeImage: (pixels, tap = noTap) => tf.tidy(() => encodeImage(params.vision, config.vision_config, pixels, tap)),
    encodeText: (ids, mask, tap = noTap) => tf.tidy(() => encodeText(params.text, config.text_config, ids, mask, tap)),
    logits: (images, texts) => tf.tidy(() => clipLogits(params.logitScale, images, texts)),
    loss: (images, texts) => tf.tidy(() => contrastiveLoss(params.logitScale, images, texts)),
    with: around,
    dispose: () => disposeParams(spec, params),
  });
  return around(params);
}
