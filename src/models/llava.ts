/**
 * LLaVA: a CLIP tower's patches, translated by a small MLP, stand in a language model's prompt (Liu et al. 2023, "Visual Instruction Tuning"; 2024,
 * "Improved Baselines", LLaVA-1.5). LLaVA-NeXT and LLaVA-OneVision share all of it but how the tiles of a picture are put together (`anyres-features.ts`).
 * Numbers as transformers/models/{llava,llava_next,llava_onevision}/modeling_*.py; names of weights and config keys as in the published checkpoints.
 */
import { tf } from "../engine/tf";
import { activationName, activations, linear, linearSpec, projectionSpec } from "../nn/layers";
import { type Params, w } from "../nn/spec";
import { noTap, type Tap } from "../nn/tap";
import { checkKnown, readConfig } from "./config";
import { languageConfig } from "./language-config";
import { type LlamaConfig, llamaSpec } from "./llama";
import { hasClassToken, type TowerConfig, towerConfig, towerSide, towerSpec, towerStates } from "./tower";

const DEFAULTS = {
  image_seq_length: 576,
  image_token_index: 32000,
  multimodal_projector_bias: true,
  projector_hidden_act: "gelu",
  vision_feature_select_strategy: "default",
  use_image_newline_parameter: true,
};
/** ignore_index is the labels' word for "no loss here"; pinpoints and limits of tiles are the image processor's; a video token is never made. */
const UNUSED =
  "ignore_index image_grid_pinpoints vision_aspect_ratio video_token_index video_token_id vocab_size tie_word_embeddings".split(" ");

/** What the families have apart: the token of a picture, the layer that is read, the newline behind each row of patches. */
const FAMILIES = {
  llava: { image_token_index: 32000, layer: -2, strategy: "default", newline: false },
  llava_next: { image_token_index: 32000, layer: -2, strategy: "default", newline: true },
  llava_onevision: { image_token_index: 151646, layer: -1, strategy: "full", newline: true },
};
export type LlavaFamily = keyof typeof FAMILIES;
export const isLlava = (modelType: string): modelType is LlavaFamily => Object.hasOwn(FAMILIES, modelType);

export type LlavaConfig = Omit<typeof DEFAULTS, "use_image_newline_parameter"> & {
  modelType: LlavaFamily;
  /** Of the tower's layers, those whose patches are read, side by side. */
  vision_feature_layer: number[];
  /** Whether a learned vector stands behind each row of patches. */
  newline: boolean;
  vision_config: TowerConfig;
  text_config: LlamaConfig;
};

/** `config.json` -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export function llavaConfig(modelType: LlavaFamily, raw: { [key: string]: unknown }): LlavaConfig {
  const { vision_config, text_config, vision_feature_layer, image_token_id, ...rest } = raw;
  const family = FAMILIES[modelType];
  const defaults = { ...DEFAULTS, image_token_index: family.image_token_index, vision_feature_select_strategy: family.strategy };
  const given = image_token_id === undefined ? rest : { image_token_index: image_token_id, ...rest };
  const { use_image_newline_parameter: newline, ...config } = readConfig(given, defaults, "config.json", UNUSED) as typeof DEFAULTS;
  checkKnown("config.json: projector_hidden_act", config.projector_hidden_act, Object.keys(activations));
  checkKnown("config.json: vision_feature_select_strategy", config.vision_feature_select_strategy, ["default", "full"]);
  const layers = [vision_feature_layer ?? family.layer].flat();
  if (!layers.every((layer) => Number.isInteger(layer)) || layers.length === 0)
    throw new Error(
      `config.json: vision_feature_layer is ${JSON.stringify(vision_feature_layer)}, expected a whole number or a list of them`,
    );
  const vision = towerConfig(vision_config);
  const depth = vision.vit.num_hidden_layers;
  const odd = (layers as number[]).filter((layer) => layer > depth || layer < -depth - 1);
  if (odd.length) throw new Error(`config.json: vision_feature_layer ${odd.join(", ")}: the tower has ${depth} layers`);
  if (family.newline && !newline)
    throw new Error("config.json: use_image_newline_parameter false is not handled here; it changes what the model computes");
  return {
    ...config,
    modelType,
    newline: family.newline,
    vision_feature_layer: layers as number[],
    vision_config: vision,
    text_config: languageConfig(text_config, "config.json: text_config", raw.tie_word_embeddings as boolean | undefined),
  };
}

/** Every weight by its published name. */
export const llavaSpec = (c: LlavaConfig) => {
  const [wide, D] = [c.vision_config.vit.hidden_size * c.vision_feature_layer.length, c.text_config.hidden_size];
  const layer = (name: string, inner: number) =>
    (c.multimodal_projector_bias ? linearSpec : projectionSpec)(`multi_modal_projector.${name}`, inner, D) as ReturnType<typeof linearSpec>;
  return {
    vision: towerSpec(c.vision_config, "vision_tower.vision_model."),
    projector: { fc1: layer("linear_1", wide), fc2: layer("linear_2", D) },
    ...(c.newline ? { newline: w("image_newline", [D]) } : {}),
    language: llamaSpec(c.text_config, "language_model."),
  };
};
export type LlavaParams = Params<ReturnType<typeof llavaSpec>>;

/** Patches that a tile becomes: with the strategy "full", CLIP's class token first. */
export function tokensPerTile(c: LlavaConfig): { classToken: boolean; side: number; count: number } {
  const [side, classToken] = [towerSide(c.vision_config), hasClassToken(c.vision_config) && c.vision_feature_select_strategy === "full"];
  return { side, classToken, count: side * side + (classToken ? 1 : 0) };
}

/**
 * Tiles as vectors of the language model's width. pixels: [tiles, S, S, 3], mean and std applied -> [tiles, patches, D]
 * Taps: `vision.…` as CLIP's and SigLIP's towers have them, `projector`.
 */
export function projectTiles(p: LlavaParams, c: LlavaConfig, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor3D {
  return tf.tidy(() => {
    const states = towerStates(p.vision, c.vision_config, pixels, c.vision_feature_layer, tap);
    const drop = c.vision_feature_select_strategy === "default" ? 1 : 0; //                          the class token, or whatever stands first
    const read = states.map((x) => (drop ? x.slice([0, 1, 0], [x.shape[0], x.shape[1] - 1, x.shape[2]]) : x));
    const x = read.length === 1 ? read[0] : tf.concat(read, 2); //                                   [tiles, patches, D · layers]
    const hidden = linear(p.projector.fc1, x, { activation: activationName(c.projector_hidden_act) });
    return tap("projector", linear(p.projector.fc2, hidden) as tf.Tensor3D); //                      [tiles, patches, D]
  });
}
