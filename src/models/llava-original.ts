/**
 * LLaVA in the layout of its original repository (LLaVA-1.5, and LLaVA-1.5-HD whose pictures are cut into tiles): the language model's keys stand at the top of
 * config.json, the projector is a sequence, and the picture tower is another checkpoint, which `mm_vision_tower` names.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type Checkpoint, openCheckpoint } from "../files/checkpoint";
import type { TensorSource } from "../files/dtype";
import { type ResolveOptions, resolveModel } from "../files/hub";
import { mapLeaves } from "../nn/spec";
import type { Tokenizer } from "../text/tokenizer";
import { type LlavaConfig, llavaConfig, llavaSpec } from "./llava";

type Raw = { [key: string]: unknown };

const MODEL_TYPES: { [original: string]: string } = { llava: "llama", llava_llama: "llama", llava_mistral: "mistral" };
export const isOriginalLlava = (raw: Raw): boolean => Object.hasOwn(MODEL_TYPES, String(raw.model_type)) && "mm_vision_tower" in raw;

/** The id of a picture in a text: no token of the tokenizer. */
export const LLAVA_IMAGE_ID = -200;
const TOWER = "model.vision_tower.vision_tower.";

/** What must have these values, or the model computes something else than what is computed here. */
const FIXED: Raw = {
  mm_projector_type: "mlp2x_gelu",
  mm_patch_merge_type: "flat",
  mm_use_im_start_end: false,
  mm_use_im_patch_token: false,
  mm_resampler_type: null,
};
/** How it was trained, and what the image processor reads. */
const UNUSED = new Set(
  `mm_hidden_size mm_vision_select_feature mm_vision_select_layer mm_vision_tower image_aspect_ratio image_grid_pinpoints image_crop_resolution
  image_split_resolution freeze_mm_mlp_adapter freeze_mm_vision_resampler tune_mm_mlp_adapter tune_mm_vision_resampler unfreeze_mm_vision_tower
  mm_projector_lr mm_vision_tower_lr mm_tunable_parts use_mm_proj tokenizer_model_max_length tokenizer_padding_side`.split(/\s+/),
);

export type OriginalLlava = {
  config: LlavaConfig;
  /** The language model's keys. */
  text: Raw;
  /** Weights by the names of the original files, the tower's among them. */
  spec: ReturnType<typeof llavaSpec>;
  tensors: Map<string, TensorSource>;
  /** Closes the tower's files. */
  close(): void;
};

/** Opens the tower too. @throws listing what is not handled, or naming the tower that is not there */
export async function openOriginalLlava(
  { folder, config: raw, tensors }: Checkpoint,
  options: ResolveOptions = {},
): Promise<OriginalLlava> {
  const wrong = Object.entries(FIXED).filter(([key, value]) => key in raw && raw[key] !== value && !(value === null && !raw[key]));
  if (wrong.length)
    throw new Error(
      `${folder}/config.json: not handled here, and it changes what the model computes: ${wrong.map(([key, value]) => `${key} ${JSON.stringify(raw[key])} (handled: ${JSON.stringify(value)})`).join("; ")}`,
    );
  const named = String(raw.mm_vision_tower);
  const tower = openCheckpoint(existsSync(join(folder, named)) ? join(folder, named) : await resolveModel(named, options));
  const text = Object.fromEntries(Object.entries(raw).filter(([key]) => !UNUSED.has(key) && !(key in FIXED)));
  text.model_type = MODEL_TYPES[String(raw.model_type)];
  const config = llavaConfig("llava", {
    vision_config: { ...((tower.config.vision_config as object | undefined) ?? tower.config), model_type: towerType(tower.config) },
    text_config: text,
    tie_word_embeddings: raw.tie_word_embeddings ?? false,
    vision_feature_layer: raw.mm_vision_select_layer ?? -2,
    vision_feature_select_strategy: (raw.mm_vision_select_feature ?? "patch") === "patch" ? "default" : "full",
  });
  config.image_token_index = LLAVA_IMAGE_ID; // no row of the table
  const spec = mapLeaves(llavaSpec(config), (leaf) => ({ ...leaf, name: originalName(leaf.name) })) as ReturnType<typeof llavaSpec>;
  return { config, text, spec, tensors: withTower(tensors, tower.tensors), close: tower.close };
}

const towerType = ({ model_type }: Raw): string => (String(model_type).startsWith("siglip") ? "siglip_vision_model" : "clip_vision_model");

/** The original's name of a weight of the published layout. */
const originalName = (name: string): string =>
  name
    .replace(/^language_model\./, "")
    .replace(/^multi_modal_projector\.linear_1\./, "model.mm_projector.0.")
    .replace(/^multi_modal_projector\.linear_2\./, "model.mm_projector.2.")
    .replace(/^vision_tower\./, TOWER);

/** The file's tensors, and the tower's where the file itself has none. */
function withTower(own: Map<string, TensorSource>, tower: Map<string, TensorSource>): Map<string, TensorSource> {
  const all = new Map([...own].filter(([name]) => !name.endsWith(".rotary_emb.inv_freq"))); // old files store what follows from the config
  if ([...all.keys()].some((name) => name.startsWith(TOWER))) return all;
  for (const [name, source] of tower) if (name.startsWith("vision_model.")) all.set(TOWER + name, source);
  return all;
}

/** Each part of a text by itself, as the original does, a picture's id between two. */
export function encodeOriginal({ encode, special }: Tokenizer, text: string): number[] {
  const parts = text.split("<image>").map((part) => encode(part, { addSpecialTokens: false }));
  const ids = parts.flatMap((part, i) => (i ? [LLAVA_IMAGE_ID, ...part] : part));
  return special.bos === undefined || ids[0] === special.bos ? ids : [special.bos, ...ids];
}
