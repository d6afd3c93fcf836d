/**
 * BLIP-2 that answers (Li et al. 2023) and InstructBLIP (Dai et al. 2023): an EVA ViT, a Q-Former whose learned queries read its picture, in InstructBLIP
 * together with the instruction, and a projection of the queries' states to what a language model reads before the text.
 * Numbers as transformers/models/{blip_2,instructblip}/modeling_*.py (…ForConditionalGeneration); names as in their checkpoints.
 */
import { tf } from "../engine/tf";
import { linear, linearSpec } from "../nn/layers";
import { type Params, w } from "../nn/spec";
import { noTap, type Tap } from "../nn/tap";
import { readConfig } from "./config";
import { type EvaVitConfig, evaVit, evaVitConfig, evaVitSpec } from "./eva-vit";
import type { LanguagePart } from "./language-part";
import { type QFormerConfig, qFormerConfig, qFormerSpec, readPicture } from "./qformer";

const DEFAULTS = { num_query_tokens: 32 };
const UNUSED = "image_text_hidden_size image_token_index use_decoder_only_language_model".split(" ");

export type QueriesConfig = { num_query_tokens: number; vision_config: EvaVitConfig; qformer_config: QFormerConfig };

/**
 * `config.json` without its `text_config` -> config with every value present.
 *
 * @param reads whether the Q-Former reads the text too: InstructBLIP's
 * @throws listing unhandled keys and impossible sizes
 */
export function queriesConfig(raw: { [key: string]: unknown }, reads: boolean): QueriesConfig {
  const { vision_config: vision, qformer_config: qformer, text_config: _, ...rest } = raw;
  const vision_config = evaVitConfig(vision);
  const given = { ...((qformer ?? {}) as object), encoder_hidden_size: vision_config.hidden_size, use_qformer_text_input: reads };
  return { ...readConfig(rest, DEFAULTS, "config.json", UNUSED), vision_config, qformer_config: qFormerConfig(given) };
}

/** Every weight by its name in the file. D: width of what the language model reads */
export const queriesSpec = (c: QueriesConfig, D: number) => {
  const width = c.qformer_config.hidden_size;
  return {
    queries: w("query_tokens", [1, c.num_query_tokens, width]),
    vision: evaVitSpec(c.vision_config, "vision_model."),
    qformer: qFormerSpec(c.qformer_config, "qformer."),
    projection: linearSpec("language_projection", width, D),
  };
};
export type Queries = Params<ReturnType<typeof queriesSpec>>;

/** The whole model's weights. */
export const generationSpec = (c: QueriesConfig, { hiddenSize, spec }: Pick<LanguagePart, "hiddenSize" | "spec">) => ({
  ...queriesSpec(c, hiddenSize),
  language: spec,
});
export type Blip2GenerationParams = Params<ReturnType<typeof generationSpec>>;

/**
 * Pictures as tokens of the language model. pixels: [B, S, S, 3], mean and std applied -> [B, num_query_tokens, D]
 * Taps: those of `evaVit` and of the Q-Former, and `projector`.
 *
 * @param text int32 [B or 1, N]: the instruction in the Q-Former's own tokens, where it reads one
 */
export function projectPictures(
  p: Queries,
  c: QueriesConfig,
  pixels: tf.Tensor4D,
  { ids, padding, tap = noTap }: { ids?: tf.Tensor2D; padding?: tf.Tensor2D; tap?: Tap } = {},
): tf.Tensor3D {
  return tf.tidy(() => {
    const states = evaVit(p.vision, c.vision_config, pixels, tap); //                                  [B, 1 + n, D]
    const queries = p.queries.tile([pixels.shape[0], 1, 1]) as tf.Tensor3D; //                                        [B, Q, D]
    const read = readPicture(p.qformer, c.qformer_config, { queries, states, ids, padding }, tap); //  [B, Q, D]
    return tap("projector", linear(p.projection, read) as tf.Tensor3D);
  });
}
