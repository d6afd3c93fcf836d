/**
 * InternVL in the layout of transformers (Chen et al. 2024, "InternVL 1.5"; Zhu et al. 2025, "InternVL 3"): InternViT, pixel shuffle, an MLP projector,
 * and a Qwen2 decoder in whose prompt the picture's tokens stand at `image_token_id`. Numbers as transformers/models/internvl/modeling_internvl.py.
 */
import { tf } from "../engine/tf";
import { activationName, layerNorm, linear, linearSpec, normSpec } from "../nn/layers";
import { pixelShuffle } from "../nn/patches";
import type { Params } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";
import { type InternVitConfig, internVit, internVitSpec } from "./internvit";
import { embedTokens, type LlamaConfig, llamaConfig, llamaSpec } from "./llama";

const VISION_DEFAULTS = {
  hidden_size: 1024,
  intermediate_size: 4096,
  num_hidden_layers: 24,
  num_attention_heads: 16,
  num_channels: 3,
  hidden_act: "gelu",
  layer_norm_eps: 1e-6,
  attention_bias: false,
  norm_type: "layer_norm",
  use_qk_norm: false,
  use_absolute_position_embeddings: true,
};
const VISION_UNUSED =
  "attention_dropout hidden_dropout_prob projection_dropout layer_scale_init_value use_mask_token use_mean_pooling".split(" ");
const DEFAULTS = {
  downsample_ratio: 0.5,
  image_seq_length: 256,
  image_token_id: 151667,
  projector_hidden_act: "gelu",
  vision_feature_layer: -1,
  vision_feature_select_strategy: "default",
};

export type InternVLConfig = typeof DEFAULTS & { vision_config: InternVitConfig; text_config: LlamaConfig };

const square = (value: unknown, otherwise: number): number => Number(Array.isArray(value) ? value[0] : (value ?? otherwise));

/** `config.json` -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export function internVLConfig(raw: { [key: string]: unknown }): InternVLConfig {
  const { vision_config, text_config, ...rest } = raw;
  const { image_size, patch_size, ...vision } = (vision_config ?? {}) as { [key: string]: unknown };
  const where = "config.json: vision_config";
  const read = readConfig(vision, VISION_DEFAULTS, where, VISION_UNUSED) as typeof VISION_DEFAULTS;
  checkHeads(where, read);
  checkKnown(`${where}: norm_type`, read.norm_type, ["layer_norm"]);
  if (read.use_qk_norm || !read.use_absolute_position_embeddings)
    throw new Error(
      `${where}: use_qk_norm true and use_absolute_position_embeddings false are not handled here; they change what the model computes`,
    );
  return {
    ...(readConfig(rest, DEFAULTS, "config.json", ["tie_word_embeddings"]) as typeof DEFAULTS),
    vision_config: { ...read, image_size: square(image_size, 448), patch_size: square(patch_size, 14) },
    text_config: llamaConfig(text_config, "config.json: text_config", { qkv_bias: true, tied: rest.tie_word_embeddings === true }),
  };
}

/** Every weight by its name in the file. */
export const internVLSpec = (c: InternVLConfig) => {
  const [wide, D] = [c.vision_config.hidden_size * Math.round(1 / c.downsample_ratio) ** 2, c.text_config.hidden_size];
  return {
    vision: internVitSpec(c.vision_config, "vision_tower."),
    projector: {
      norm: normSpec("multi_modal_projector.layer_norm", wide),
      fc1: linearSpec("multi_modal_projector.linear_1", wide, D),
      fc2: linearSpec("multi_modal_projector.linear_2", D, D),
    },
    language: llamaSpec(c.text_config, "language_model."),
  };
};
export type InternVLParams = Params<ReturnType<typeof internVLSpec>>;

/**
 * Pictures as tokens of the language model. pixels: [tiles, S, S, 3], mean and std applied -> [tiles, image_seq_length, D]
 * Taps: those of `internVit`, and `projector`.
 */
export function projectImages(p: InternVLParams, c: InternVLConfig, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor3D {
  return tf.tidy(() => {
    const seen = internVit(p.vision, c.vision_config, pixels, tap); //                                 [B, 1 + n, D]
    const grouped = pixelShuffle(seen, { skip: 1, ratio: Math.round(1 / c.downsample_ratio) }); //     [B, n / 4, 4 D]
    const { norm, fc1, fc2 } = p.projector;
    const hidden = linear(fc1, layerNorm(norm, grouped), { activation: activationName(c.projector_hidden_act) });
    return tap("projector", linear(fc2, hidden) as tf.Tensor3D);
  });
}

/**
 * A prompt's embeddings with the picture's tokens in their places, in order. ids: int32 [B, N], images: [tiles, n, D] -> [B, N, D]
 *
 * @throws RangeError when the prompt has more or fewer image tokens than the pictures give
 */
export function embedPrompt(p: InternVLParams, c: InternVLConfig, ids: tf.Tensor2D, images?: tf.Tensor3D): tf.Tensor3D {
  const places = Array.from(ids.dataSync()).flatMap((id, i) => (id === c.image_token_id ? [i] : []));
  const given = images ? images.shape[0] * images.shape[1] : 0;
  if (places.length !== given)
    throw new RangeError(
      `the prompt has ${places.length} image tokens (id ${c.image_token_id}), the pictures give ${given}` +
        `${images ? ` (${images.shape[0]} tiles of ${images.shape[1]})` : ""}; each tile needs ${c.image_seq_length}`,
    );
  return tf.tidy(() => {
    const words = embedTokens(p.language, ids);
    if (!images || places.length === 0) return words;
    const [B, N, D] = words.shape;
    const order = Int32Array.from({ length: B * N }, (_, i) => i);
    places.forEach((place, i) => (order[place] = B * N + i));
    return tf.gather(tf.concat([words.reshape([B * N, D]), images.reshape([given, D])]), tf.tensor1d(order, "int32")).reshape([B, N, D]);
  }) as tf.Tensor3D;
}

/** The tap of the language model's activations. */
export const languageTap = (tap: Tap): Tap => at(tap, "language");
