/**
 * Ovis2.5 (Lu et al. 2025, "Ovis2.5 Technical Report"): a SigLIP 2 tower that takes pictures in their own size, with positions as a table and as turns by row
 * and column, the visual tokenizer, and Qwen3. Numbers, names of weights and config keys as in the original repository and its checkpoints.
 */
import { tf } from "../engine/tf";
import { activations } from "../nn/layers";
import type { Rotary } from "../nn/rope";
import type { Params } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { checkHeads, checkKnown, readConfig } from "./config";
import { encoderStates } from "./encoder";
import { languageConfig } from "./language-config";
import { type LlamaConfig, llamaSpec } from "./llama";
import { embedPatches, siglipVisionSpec } from "./siglip";
import { embedVisualTokens, groupPatches, type VisualVocabulary, visualTokenizerSpec, visualTokens } from "./visual-tokenizer";

const VISION_DEFAULTS = {
  hidden_size: 1024,
  intermediate_size: 4096,
  num_hidden_layers: 24,
  num_attention_heads: 16,
  num_channels: 3,
  image_size: 512,
  patch_size: 16,
  hidden_act: "gelu_pytorch_tanh",
  layer_norm_eps: 1e-6,
  hidden_stride: 2,
  temporal_patch_size: 1,
  preserve_original_pe: true,
  use_rope: true,
};
/** window_size counts only with fullatt_block_indexes; a num_patches above 0 is another layout of the patches' weight. */
const VISION_UNUSED = ["window_size", "fullatt_block_indexes", "num_patches"];
const DEFAULTS = { visual_vocab_size: 65536, conversation_formatter_class: "Qwen3ConversationFormatter" };
/** A picture begins, a picture ends, and the same of a video: the last rows of the table. */
const INDICATORS = 4;

export type Ovis25VisionConfig = typeof VISION_DEFAULTS;
export type Ovis25Config = { visual_vocab_size: number; vit_config: Ovis25VisionConfig; llm_config: LlamaConfig };

/** `config.json` -> config with every value present. @throws listing unhandled keys and impossible sizes. */
export function ovis25Config(raw: { [key: string]: unknown }): Ovis25Config {
  const { vit_config, llm_config, hidden_size, auto_map: _told, ...rest } = raw; // opening the checkpoint has told of auto_map
  const where = "config.json: vit_config";
  const vit = readConfig(vit_config, VISION_DEFAULTS, where, VISION_UNUSED) as Ovis25VisionConfig;
  checkHeads(where, vit);
  checkKnown(`${where}: hidden_act`, vit.hidden_act, Object.keys(activations));
  const { fullatt_block_indexes: windows, num_patches = -1 } = (vit_config ?? {}) as { [key: string]: unknown };
  const unhandled = [
    ...((windows ?? null) !== null ? [`fullatt_block_indexes ${JSON.stringify(windows)}`] : []),
    ...(Number(num_patches) > 0 ? [`num_patches ${num_patches}`] : []),
    ...(vit.temporal_patch_size !== 1 ? [`temporal_patch_size ${vit.temporal_patch_size}`] : []),
    ...(vit.preserve_original_pe && vit.use_rope ? [] : ["preserve_original_pe false or use_rope false"]),
  ];
  if (unhandled.length) throw new Error(`${where}: not handled here, and it changes what the model computes: ${unhandled.join("; ")}`);
  if ((vit.hidden_size / vit.num_attention_heads) % 4 !== 0)
    throw new Error(
      `${where}: a head of ${vit.hidden_size / vit.num_attention_heads} numbers does not divide into 4, which turn by row and by column`,
    );
  const config = readConfig(rest, DEFAULTS, "config.json") as typeof DEFAULTS;
  checkKnown("config.json: conversation_formatter_class", config.conversation_formatter_class, ["Qwen3ConversationFormatter"]);
  const llm = languageConfig({ model_type: "qwen3", ...(llm_config as object) }, "config.json: llm_config");
  if (hidden_size !== undefined && hidden_size !== null && hidden_size !== llm.hidden_size)
    throw new Error(`config.json: hidden_size ${hidden_size} is ${llm.hidden_size} in llm_config; they must be equal`);
  return { visual_vocab_size: config.visual_vocab_size, vit_config: vit, llm_config: llm };
}

const vocabularyOf = ({ visual_vocab_size: words, vit_config: v, llm_config: l }: Ovis25Config): VisualVocabulary => ({
  width: v.hidden_size,
  stride: v.hidden_stride,
  words,
  indicators: INDICATORS,
  hidden: l.hidden_size,
});

/** Every weight by its name in the file. `vision.lnPost` is in the file and read by nothing. */
export const ovis25Spec = (c: Ovis25Config) => ({
  vision: siglipVisionSpec(c.vit_config, "visual_tokenizer.vit.vision_model."),
  tokenizer: visualTokenizerSpec(vocabularyOf(c), { linear: "visual_tokenizer.head.0", norm: "visual_tokenizer.head.1", table: "vte" }),
  language: llamaSpec(c.llm_config, "llm."),
});
export type Ovis25Params = Params<ReturnType<typeof ovis25Spec>>;

export type GridSize = { rows: number; columns: number };
/** The frequencies of the turns, which belong to the caller. */
export type GridRotary = { byRow: Rotary; byColumn: Rotary };

/** A quarter of a head's numbers is turned by the row together with their partners half a head further, a quarter by the column (θ = 10000). */
export function gridRotary({ hidden_size, num_attention_heads }: Ovis25VisionConfig): GridRotary {
  const quarter = hidden_size / num_attention_heads / 4;
  const frequencies = Array.from({ length: quarter }, (_, i) => 10000 ** (-i / quarter));
  const rest = new Array<number>(quarter).fill(0);
  const rotary = (values: number[]): Rotary => ({ inverseFrequencies: tf.tensor1d(values), attentionFactor: 1 });
  return { byRow: rotary([...frequencies, ...rest]), byColumn: rotary([...rest, ...frequencies]) };
}

/** Row and column of each patch, row by row. int32 [1, N] each */
function places({ rows, columns }: GridSize): { rows: tf.Tensor2D; columns: tf.Tensor2D } {
  const N = rows * columns;
  const make = (of: (i: number) => number) =>
    tf.tensor2d(
      Int32Array.from({ length: N }, (_, i) => of(i)),
      [1, N],
      "int32",
    );
  return { rows: make((i) => Math.floor(i / columns)), columns: make((i) => i % columns) };
}

/** Rows and columns of patches in a picture. */
export const patchGrid = ({ patch_size: P }: Ovis25VisionConfig, height: number, width: number): GridSize => ({
  rows: Math.floor(height / P),
  columns: Math.floor(width / P),
});

/**
 * A picture as shares of the visual words, and as vectors of the language model's width. pixels: [1, H, W, 3], both sides multiples of patch_size ·
 * hidden_stride -> [1, tokens, D]
 * Taps: `vision.…` as SigLIP's, `visual_logits`, `visual_tokens` ([1, tokens, words without indicators]), `visual_embeddings`.
 */
export function ovis25Picture(p: Ovis25Params, c: Ovis25Config, pixels: tf.Tensor4D, rotary: GridRotary, tap: Tap = noTap): tf.Tensor3D {
  return tf.tidy(() => {
    const v = c.vit_config;
    const t = at(tap, "vision");
    const grid = patchGrid(v, pixels.shape[1], pixels.shape[2]);
    const [x] = encoderStates(p.vision.blocks, v, embedPatches(p.vision, v, pixels, t), [-1], t, {}, { ...places(grid), ...rotary });
    const grouped = groupPatches(x, grid, v.hidden_stride); //                                       [1, tokens, stride² · width]
    return tap("visual_embeddings", embedVisualTokens(p.tokenizer, visualTokens(p.tokenizer, grouped, tap)));
  });
}
