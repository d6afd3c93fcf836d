/**
 * InternVL in the layout of transformers (Chen et al. 2024, "InternVL 1.5"; Zhu et al. 2025, "InternVL 3"): InternViT, pixel shuffle, an MLP projector,
 * and a Qwen2 decoder in whose prompt the picture's tokens stand at `image_token_id`. Numbers as transformers/models/internvl/modeling_internvl.py.
 */
import { tf } from "../engine/tf";
import { activationName, layerNorm, linear, linearSpec, normSpec } from "../nn/layers";
import { pixelShuffle } from "../nn/patches";
import type { Params } from "../nn/spec";
import { noTap, type Tap } from "../nn/tap";
import { checkKnown, readConfig } from "./config";
import { checkInternVit, type InternVitConfig, internVit, internVitSpec } from "./internvit";
import { languageConfig } from "./language-config";
import { embedTokens, type Llama, type LlamaConfig, llamaSpec } from "./llama";

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
  use_mask_token: false,
  use_mean_pooling: true,
};
const VISION_UNUSED = "attention_dropout hidden_dropout_prob projection_dropout layer_scale_init_value".split(" ");
const DEFAULTS = {
  downsample_ratio: 0.5,
  image_seq_length: 256,
  image_token_id: 151667,
  projector_hidden_act: "gelu",
  vision_feature_layer: -1,
  vision_feature_select_strategy: "default",
};

export type InternVLConfig = {
  downsample_ratio: number;
  /** Image tokens of a tile. */
  image_seq_length: number;
  image_token_id: number;
  projector_hidden_act: string;
  /** The tower's layer that is read: -1 the last, -2 the one before, as transformers' `hidden_states`. */
  vision_feature_layer: number;
  /** The order of pixel shuffle's groups: "v1" column by column, "v2" row by row. */
  ps_version: "v1" | "v2";
  /** Of a tile, in pixels. */
  tile_size: number;
  vision_config: InternVitConfig;
  text_config: LlamaConfig;
};

const square = (value: unknown, otherwise: number): number => Number(Array.isArray(value) ? value[0] : (value ?? otherwise));

/** `config.json` -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export function internVLConfig(raw: { [key: string]: unknown }): InternVLConfig {
  const { vision_config, text_config, ...rest } = raw;
  const { image_size, patch_size, ...vision } = (vision_config ?? {}) as { [key: string]: unknown };
  const where = "config.json: vision_config";
  const read = readConfig(vision, VISION_DEFAULTS, where, VISION_UNUSED) as typeof VISION_DEFAULTS;
  if (!read.use_absolute_position_embeddings || read.use_mask_token)
    throw new Error(
      `${where}: use_absolute_position_embeddings false and use_mask_token true are not handled here; they change what the model computes`,
    );
  const top = readConfig(rest, DEFAULTS, "config.json", ["tie_word_embeddings"]) as typeof DEFAULTS;
  checkKnown("config.json: vision_feature_select_strategy", top.vision_feature_select_strategy, ["default"]); // a class token is no place in a picture
  const size = square(image_size, 448);
  const tower: InternVitConfig = {
    ...read,
    image_size: size,
    patch_size: square(patch_size, 14),
    qk_norm_eps: 1e-6, // transformers' own, whatever layer_norm_eps is
    final_norm: !read.use_mean_pooling,
  };
  checkInternVit(where, tower);
  return {
    ...top,
    ps_version: "v2",
    tile_size: size,
    vision_config: tower,
    text_config: languageConfig(
      { model_type: "qwen2", ...(text_config as object) },
      "config.json: text_config",
      rest.tie_word_embeddings as boolean | undefined,
    ),
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
export type InternVLSpec = ReturnType<typeof internVLSpec>;
export type InternVLParams = Omit<Params<InternVLSpec>, "language"> & { language: Llama };

/**
 * Pictures as tokens of the language model. pixels: [tiles, S, S, 3], mean and std applied -> [tiles, image_seq_length, D]
 * Taps: those of `internVit`, and `projector`.
 */
export function projectImages(p: InternVLParams, c: InternVLConfig, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor3D {
  return tf.tidy(() => {
    const seen = internVit(p.vision, c.vision_config, pixels, tap, c.vision_feature_layer); //         [B, 1 + n, D]
    const grouped = pixelShuffle(seen, { skip: 1, ratio: Math.round(1 / c.downsample_ratio), version: c.ps_version }); // [B, n / 4, 4 D]
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
    return images && places.length > 0 ? placeFeatures(words, places, images.reshape([given, -1]) as tf.Tensor2D) : words;
  });
}

/** Embeddings with features in some of their places, counted through all rows. words: [B, N, D], features: [places, D] -> [B, N, D] */
export function placeFeatures(words: tf.Tensor3D, places: readonly number[], features: tf.Tensor2D): tf.Tensor3D {
  const [B, N, D] = words.shape;
  const order = Int32Array.from({ length: B * N }, (_, i) => i);
  places.forEach((place, i) => (order[place] = B * N + i));
  return tf.tidy(() => tf.gather(tf.concat([words.reshape([B * N, D]), features]), tf.tensor1d(order, "int32")).reshape([B, N, D]));
}
