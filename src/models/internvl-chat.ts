/**
 * InternVL in the layout of its original repository (`InternVLChatModel`; Chen et al. 2024, InternVL 1.5 to 2.5): the same model under other names, around
 * InternLM2, Qwen2, Phi-3 or Llama.
 */
import { linearSpec, normSpec } from "../nn/layers";
import { checkKnown, readConfig } from "./config";
import { internLM2Config, internLM2Spec } from "./internlm2";
import type { InternVLConfig, InternVLSpec } from "./internvl";
import { checkInternVit, type InternVitConfig, internVitSpec } from "./internvit";
import { languageConfig } from "./language-config";
import { type LlamaConfig, llamaSpec } from "./llama";
import { phi3Config, phi3Spec } from "./phi3";

type Raw = { [key: string]: unknown };

const VISION_DEFAULTS = {
  hidden_size: 3200,
  intermediate_size: 12800,
  num_hidden_layers: 48,
  num_attention_heads: 25,
  num_channels: 3,
  image_size: 224,
  patch_size: 14,
  hidden_act: "gelu",
  layer_norm_eps: 1e-6,
  qkv_bias: false,
  norm_type: "rms_norm",
  qk_normalization: true,
};
/** How it was trained, and how its own code computes the same. */
const VISION_UNUSED = ["drop_path_rate", "use_flash_attn"];
const DEFAULTS = { downsample_ratio: 0.5, force_image_size: 0, select_layer: -1, ps_version: "v1", template: "" };
/** How it was trained, and what the tile processor reads. `pad2square`, `use_thumbnail` and the patch counts are the tile processor's. */
const UNUSED =
  "dynamic_image_size max_dynamic_patch min_dynamic_patch use_thumbnail pad2square hidden_size system_message image_fold".split(" ");

type LanguageSpec = ReturnType<typeof llamaSpec>;
type Language = { config(raw: unknown, where: string): LlamaConfig; spec(c: LlamaConfig, prefix: string): LanguageSpec };
const LLAMA: Language = { config: languageConfig, spec: llamaSpec };
/** By `architectures` of llm_config. */
const LANGUAGES: { [architecture: string]: Language } = {
  InternLM2ForCausalLM: { config: internLM2Config, spec: internLM2Spec as never },
  Qwen2ForCausalLM: LLAMA,
  Qwen3ForCausalLM: LLAMA,
  LlamaForCausalLM: LLAMA,
  Phi3ForCausalLM: { config: phi3Config, spec: phi3Spec as never },
};

function languageOf(llm: Raw): Language {
  const architecture = String((llm.architectures as unknown[] | undefined)?.[0] ?? "");
  checkKnown("config.json: llm_config: architectures", architecture, Object.keys(LANGUAGES));
  return LANGUAGES[architecture];
}

function visionConfig(raw: unknown, where: string): InternVitConfig {
  const { qkv_bias, qk_normalization, ...c } = readConfig(raw, VISION_DEFAULTS, where, VISION_UNUSED) as typeof VISION_DEFAULTS;
  const tower = { ...c, attention_bias: qkv_bias, use_qk_norm: qk_normalization, qk_norm_eps: c.layer_norm_eps, final_norm: false };
  checkInternVit(where, tower);
  return tower;
}

export type InternVLChatConfig = InternVLConfig & {
  /** Name of the conversation template of the original code, e.g. "internvl2_5"; empty where the file gives none. */
  template: string;
};

/**
 * `config.json` -> config with every value present.
 *
 * @param contextToken id of `<IMG_CONTEXT>`, which the original code asks the tokenizer for
 * @throws listing unhandled keys and impossible sizes
 */
export function internVLChatConfig(raw: Raw, contextToken: number): InternVLChatConfig {
  const { vision_config, llm_config, use_backbone_lora = 0, use_llm_lora = 0, ...rest } = raw;
  const c = readConfig(rest, DEFAULTS, "config.json", UNUSED) as typeof DEFAULTS;
  if (use_backbone_lora || use_llm_lora)
    throw new Error("config.json: use_backbone_lora and use_llm_lora are not handled here; merge the adapters into the weights first");
  checkKnown("config.json: ps_version", c.ps_version, ["v1", "v2"]);
  const tower = visionConfig(vision_config, "config.json: vision_config");
  const tile_size = c.force_image_size || tower.image_size;
  return {
    downsample_ratio: c.downsample_ratio,
    image_seq_length: Math.floor(Math.floor(tile_size / tower.patch_size) ** 2 * c.downsample_ratio ** 2),
    image_token_id: contextToken,
    projector_hidden_act: "gelu",
    vision_feature_layer: c.select_layer,
    ps_version: c.ps_version as "v1" | "v2",
    tile_size,
    vision_config: tower,
    text_config: languageOf(llm_config as Raw).config(llm_config, "config.json: llm_config"),
    template: c.template,
  };
}

/** Every weight by its name in the file. */
export function internVLChatSpec(c: InternVLConfig, raw: Raw): InternVLSpec {
  const [wide, D] = [c.vision_config.hidden_size * Math.round(1 / c.downsample_ratio) ** 2, c.text_config.hidden_size];
  return {
    vision: internVitSpec(c.vision_config, "vision_model.", "original"),
    projector: { norm: normSpec("mlp1.0", wide), fc1: linearSpec("mlp1.1", wide, D), fc2: linearSpec("mlp1.3", D, D) },
    language: languageOf(raw.llm_config as Raw).spec(c.text_config, "language_model."),
  };
}
