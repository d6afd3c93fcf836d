/**
 * Ovis2 (Lu et al. 2024, "Ovis: Structural Embedding Alignment for Multimodal Large Language Model"): an AIMv2 tower (Fini et al. 2024), the visual
 * tokenizer, and Qwen2. Numbers as transformers/models/ovis2/modeling_ovis2.py; names of weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import { asBlock } from "../nn/block";
import { add, attention, gatedMlp, linearSpec, patchEmbed, projectionSpec, rmsNorm, rmsNormSpec } from "../nn/layers";
import { mapLeaves, type Params, patchKernel, repeat, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";
import { languageConfig } from "./language-config";
import { type LlamaConfig, llamaSpec } from "./llama";
import {
  embedVisualTokens,
  groupPatches,
  indicatorEmbeddings,
  type VisualVocabulary,
  visualTokenizerSpec,
  visualTokens,
} from "./visual-tokenizer";

const VISION_DEFAULTS = {
  hidden_size: 1024,
  intermediate_size: 2816,
  num_hidden_layers: 24,
  num_attention_heads: 8,
  num_channels: 3,
  image_size: 224,
  patch_size: 14,
  rms_norm_eps: 1e-5,
  qkv_bias: false,
  mlp_bias: false,
  hidden_act: "silu",
  vocab_size: 16384,
  hidden_stride: 1,
  num_visual_indicator_tokens: 5,
  tokenize_function: "softmax",
};
/** vocab_size and hidden_size of the whole are checked against the language model's. */
const DEFAULTS = { image_token_id: 151665, vocab_size: 151643, hidden_size: 1536 };
const INDICATORS = [151666, 151667, 151668, 151669, 151670];

export type Ovis2VisionConfig = typeof VISION_DEFAULTS;
export type Ovis2Config = {
  image_token_id: number;
  /** Ids of: a picture begins, its whole is over, next column, next row, the picture ends. */
  visual_indicator_token_ids: number[];
  vision_config: Ovis2VisionConfig;
  text_config: LlamaConfig;
};

/** `config.json` -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export function ovis2Config(raw: { [key: string]: unknown }): Ovis2Config {
  const { vision_config, text_config, visual_indicator_token_ids: ids = INDICATORS, tie_word_embeddings: tied, ...rest } = raw;
  const where = "config.json: vision_config";
  const vision = readConfig(vision_config, VISION_DEFAULTS, where) as Ovis2VisionConfig;
  checkHeads(where, vision);
  checkKnown(`${where}: hidden_act`, vision.hidden_act, ["silu"]);
  checkKnown(`${where}: tokenize_function`, vision.tokenize_function, ["softmax"]); // the others choose one word, by chance or for training
  if (
    !Array.isArray(ids) ||
    ids.length !== vision.num_visual_indicator_tokens ||
    ids.length !== 5 ||
    !ids.every((id) => Number.isInteger(id))
  )
    throw new Error(
      `config.json: visual_indicator_token_ids is ${JSON.stringify(ids)}, expected 5 ids, as many as num_visual_indicator_tokens`,
    );
  const text = languageConfig(
    { model_type: "qwen2", ...(text_config as object) },
    "config.json: text_config",
    (tied as boolean | undefined) ?? true,
  );
  const config = readConfig(rest, DEFAULTS, "config.json") as typeof DEFAULTS;
  const sizes = ["vocab_size", "hidden_size"] as const;
  const odd = sizes.filter((key) => rest[key] !== undefined && config[key] !== text[key]);
  if (odd.length)
    throw new Error(
      `config.json: ${odd.map((key) => `${key} ${config[key]} is ${text[key]} in text_config`).join("; ")}; they must be equal`,
    );
  return { image_token_id: config.image_token_id, visual_indicator_token_ids: ids as number[], vision_config: vision, text_config: text };
}

const blockSpec = (name: string, c: Ovis2VisionConfig) => {
  const { hidden_size: D, intermediate_size: F } = c;
  const layer = (has: boolean, part: string, inner: number, out: number) =>
    (has ? linearSpec : projectionSpec)(`${name}.${part}`, inner, out) as ReturnType<typeof projectionSpec>;
  const heads = (part: string) => layer(c.qkv_bias, `attention.${part}`, D, D);
  return {
    ln1: rmsNormSpec(`${name}.rms_norm1`, D),
    attn: { q: heads("q_proj"), k: heads("k_proj"), v: heads("v_proj"), out: heads("out_proj") },
    ln2: rmsNormSpec(`${name}.rms_norm2`, D),
    mlp: {
      gate: layer(c.mlp_bias, "ffn.gate_proj", D, F),
      up: layer(c.mlp_bias, "ffn.up_proj", D, F),
      down: layer(c.mlp_bias, "ffn.down_proj", F, D),
    },
  };
};

export const vocabularyOf = ({ vision_config: v, text_config: t }: Ovis2Config): VisualVocabulary => ({
  width: v.hidden_size,
  stride: v.hidden_stride,
  words: v.vocab_size,
  indicators: v.num_visual_indicator_tokens,
  hidden: t.hidden_size,
});

/** Rows, or columns, of patches in a tile. */
export const patchSide = ({ image_size, patch_size }: Ovis2VisionConfig): number => Math.floor(image_size / patch_size);

const visionSpec = (c: Ovis2VisionConfig, name: string) => ({
  patch: {
    weight: patchKernel(`${name}.embeddings.patch_embedding.weight`, [c.hidden_size, c.num_channels, c.patch_size]),
    bias: w(`${name}.embeddings.patch_embedding.bias`, [c.hidden_size]),
  },
  patchNorm: rmsNormSpec(`${name}.embeddings.rms_norm`, c.hidden_size),
  position: w(`${name}.embeddings.position_embedding.weight`, [patchSide(c) ** 2, c.hidden_size]),
  blocks: repeat(c.num_hidden_layers, (i) => blockSpec(`${name}.encoder.layers.${i}`, c)),
  norm: rmsNormSpec(`${name}.rms_norm`, c.hidden_size),
});

/** Llama's names as transformers 5 has them inside a larger model. */
const inside = <S>(spec: S): S =>
  mapLeaves(spec, (leaf) => ({ ...leaf, name: leaf.name.replace(/^model\./, "model.language_model.") })) as S;

/** Every weight by its name in the file. */
export const ovis2Spec = (c: Ovis2Config) => ({
  vision: visionSpec(c.vision_config, "model.vision_tower.transformer"),
  tokenizer: visualTokenizerSpec(vocabularyOf(c), {
    linear: "model.vision_tower.head_linear",
    norm: "model.vision_tower.head_norm",
    table: "model.visual_embeddings_table",
  }),
  language: inside(llamaSpec(c.text_config)),
});
export type Ovis2Params = Params<ReturnType<typeof ovis2Spec>>;
type Vision = Ovis2Params["vision"];

function block(
  p: Vision["blocks"][number],
  { num_attention_heads: heads, rms_norm_eps: eps }: Ovis2VisionConfig,
  x: tf.Tensor3D,
  tap: Tap,
) {
  x = tap("resid_pre", x);
  x = tap(
    "resid_mid",
    add(x, "attn_out", tap, (onto) => attention(p.attn, rmsNorm(p.ln1, x, eps), { heads, tap: at(tap, "attn"), onto })),
  );
  return tap(
    "resid_post",
    add(x, "mlp_out", tap, (onto) => gatedMlp(p.mlp, rmsNorm(p.ln2, x, eps), at(tap, "mlp"), onto)),
  );
}

/**
 * Every patch behind the tower's last norm. pixels: [B, S, S, 3], mean and std applied -> [B, (S / P)², D]
 * Taps: `vision.patch_embed`, `vision.embed`, `vision.blocks.N.…` as Llama's, `vision.final`.
 */
export function ovis2Vision(p: Vision, c: Ovis2VisionConfig, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor3D {
  const t = at(tap, "vision");
  const patches = t("patch_embed", patchEmbed(p.patch, pixels, c.patch_size)); //                    [B, N, D]
  let x = t("embed", rmsNorm(p.patchNorm, patches, c.rms_norm_eps).add(p.position) as tf.Tensor3D);
  p.blocks.forEach((layer, i) => {
    const watch = at(t, `blocks.${i}`);
    x = asBlock(layer, { x }, ({ x }) => block(layer, c, x, watch), { tap: watch });
  });
  return t("final", rmsNorm(p.norm, x, c.rms_norm_eps));
}

/**
 * Tiles as shares of the visual words, and as vectors of the language model's width. pixels: [tiles, S, S, 3]
 * Taps: those of `ovis2Vision`, `visual_logits`, `visual_tokens` ([tiles, tokens, words without indicators]), `visual_embeddings`.
 */
export function ovis2Tiles(p: Ovis2Params, c: Ovis2Config, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor3D {
  return tf.tidy(() => {
    const side = patchSide(c.vision_config);
    const x = ovis2Vision(p.vision, c.vision_config, pixels, tap); //                                [tiles, N, D]
    const grouped = groupPatches(x, { rows: side, columns: side }, c.vision_config.hidden_stride);
    return tap("visual_embeddings", embedVisualTokens(p.tokenizer, visualTokens(p.tokenizer, grouped, tap)));
  });
}

/** The indicators in the order of `visual_indicator_token_ids`. [5, hidden] */
export const ovis2Indicators = (p: Ovis2Params, c: Ovis2Config): tf.Tensor2D =>
  indicatorEmbeddings(p.tokenizer, c.vision_config.num_visual_indicator_tokens);
