/** A SigLIP checkpoint's weights as a model that takes pixels and token ids, without tokenizer and image processor. */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import { type Dtype, disposeParams, loadWeights } from "../nn/spec";
import { noTap, type Tap } from "../nn/tap";
import type { Loaded } from "./loaded";
import {
  encodeImage,
  encodeText,
  type SiglipConfig,
  type SiglipParams,
  sigmoidLoss,
  siglipConfig,
  siglipIgnored,
  siglipLogits,
  siglipSpec,
} from "./siglip";

export type SiglipWeights = Loaded<SiglipParams> & {
  modelType: "siglip";
  config: SiglipConfig;
  /** Rows and columns of patches in a picture of the checkpoint's own size. */
  grid: [number, number];
  /** Pictures [B, H, W, 3], normalised as the checkpoint's image processor does -> [B, D], not normalised. */
  encodeImage(pixels: tf.Tensor4D, tap?: Tap): tf.Tensor2D;
  /** Token ids int32 [B, N], padded to the checkpoint's length; a mask is for experiments, SigLIP was trained without -> [B, D], not normalised. */
  encodeText(ids: tf.Tensor2D, mask?: tf.Tensor2D, tap?: Tap): tf.Tensor2D;
  /** exp(logit_scale) · cosine + logit_bias of every picture with every text; its sigmoid is the probability of a pair. [B, D], [T, D] -> [B, T] */
  logits(images: tf.Tensor2D, texts: tf.Tensor2D): tf.Tensor2D;
  /** Sigmoid loss of matching rows. [B, D], [B, D] -> scalar */
  loss(images: tf.Tensor2D, texts: tf.Tensor2D): tf.Scalar;
  /** The same model around another parameter tree (with adapters attached or merged). Shares everything else. */
  with(params: SiglipParams): SiglipWeights;
};

/** The model in an open checkpoint of the family. @throws listing every misfit of config and weights */
export function siglipWeights({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype): SiglipWeights {
  const config = siglipConfig(raw);
  const spec = siglipSpec(config);
  const params = loadWeights(spec, tensors, { dtype, ignore: siglipIgnored, where: folder });
  const side = Math.floor(config.vision_config.image_size / config.vision_config.patch_size);
  const around = (params: SiglipParams): SiglipWeights => ({
    modelType: "siglip",
    folder,
    dtype,
    config,
    spec,
    params,
    grid: [side, side],
    encodeImage: (pixels, tap = noTap) => tf.tidy(() => encodeImage(params.vision, config.vision_config, pixels, tap)),
    encodeText: (ids, mask, tap = noTap) => tf.tidy(() => encodeText(params.text, config.text_config, ids, mask, tap)),
    logits: (images, texts) => tf.tidy(() => siglipLogits(params, images, texts)),
    loss: (images, texts) => tf.tidy(() => sigmoidLoss(params, images, texts)),
    with: around,
    dispose: () => disposeParams(spec, params),
  });
  return around(params);
}
