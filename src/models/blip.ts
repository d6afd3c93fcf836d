/**
 * BLIP (Li et al. 2022): a ViT, and BERT in three parts that read it through cross-attention: an encoder of texts alone or with their picture (retrieval,
 * matching), and a decoder that says captions of a picture, or answers to what a question encoder has read. Numbers as
 * transformers/models/blip/{modeling_blip,modeling_blip_text}.py; names of weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import type { Cache } from "../nn/cache";
import { crossEntropy } from "../nn/cross-entropy";
import { activations, linear, linearSpec } from "../nn/layers";
import type { Params } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { type Bert, type BertConfig, bert, bertConfig, bertEmbed, bertSpec } from "./bert";
import { checkHeads, checkKnown, readConfig } from "./config";
import { type EvaVitConfig, evaVit, evaVitSpec } from "./eva-vit";
import { languageHeadSpec, languageLogits } from "./qformer";
import { firstToken } from "./vit";

const VISION_DEFAULTS = {
  hidden_size: 768,
  intermediate_size: 3072,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  num_channels: 3,
  image_size: 384,
  patch_size: 16,
  hidden_act: "gelu",
  layer_norm_eps: 1e-5,
};
const TEXT_DEFAULTS = { vocab_size: 30524, num_attention_heads: 8 }; // where it is not BERT's
const DEFAULTS = { image_text_hidden_size: 256 };
const UNUSED = "projection_dim logit_scale_init_value label_smoothing initializer_range image_token_index".split(" ");
const TEXT_UNUSED = "encoder_hidden_size projection_dim label_smoothing initializer_range".split(" ");

export type BlipConfig = typeof DEFAULTS & {
  vision_config: EvaVitConfig;
  text_config: BertConfig;
  /** What a decoder begins with, and what ends its answers. */
  start: number;
  end: number;
  /** Of the loss of words: the share that is spread over all words. */
  smoothing: number;
};

type Json = { [key: string]: unknown };

/**
 * `config.json` of a BLIP checkpoint -> config with every value present.
 *
 * @param answers whether its decoder reads a question's states, which must then be as wide as a picture's
 * @throws listing unhandled keys and impossible sizes
 */
export function blipConfig({ vision_config, text_config, ...rest }: Json, answers = false): BlipConfig {
  const { text_config_dict, vision_config_dict, ...own } = rest;
  const vision = readVision({ ...(vision_config as Json), ...(vision_config_dict as Json) });
  const text = { ...(text_config as Json), ...(text_config_dict as Json) };
  const where = "config.json: text_config";
  const bert = bertConfig({ ...TEXT_DEFAULTS, ...text }, where, TEXT_UNUSED);
  if (text.is_decoder === false)
    throw new Error(`${where}: is_decoder is false; BLIP's text layers look at the picture, which transformers gives to decoders alone`);
  const width = (text.encoder_hidden_size ?? 768) as number;
  const odd = [
    ...(width === vision.hidden_size ? [] : [`encoder_hidden_size is ${width}, the picture's states have ${vision.hidden_size}`]),
    ...(!answers || width === bert.hidden_size ? [] : [`encoder_hidden_size is ${width}, the question's states have ${bert.hidden_size}`]),
  ];
  if (odd.length) throw new Error(`${where}: ${odd.join("; ")}; they must be equal`);
  return {
    ...readConfig(own, DEFAULTS, "config.json", UNUSED),
    vision_config: vision,
    text_config: bert,
    start: (text.bos_token_id ?? 30522) as number,
    end: (text.sep_token_id ?? 102) as number,
    smoothing: (text.label_smoothing ?? 0) as number,
  };
}

function readVision(raw: Json): EvaVitConfig {
  const where = "config.json: vision_config";
  const c = readConfig(raw, VISION_DEFAULTS, where, ["projection_dim", "initializer_range", "dropout"]);
  checkHeads(where, c);
  checkKnown(`${where}: hidden_act`, c.hidden_act, Object.keys(activations));
  if (c.num_channels !== 3) throw new Error(`${where}: num_channels is ${c.num_channels}, expected 3`);
  return { ...c, qkv_bias: true };
}

const reading = (c: BlipConfig) => ({ pooler: false, tokenTypes: false, cross: { width: c.vision_config.hidden_size } });

const decoderSpec = (c: BlipConfig) => ({
  bert: bertSpec(c.text_config, "text_decoder.bert.", reading(c)),
  head: languageHeadSpec(c.text_config, "text_decoder.cls.predictions."),
});
export type BlipDecoder = Params<ReturnType<typeof decoderSpec>>;

/** BlipForConditionalGeneration: every weight by its name in the file. */
export const captionSpec = (c: BlipConfig) => ({ vision: evaVitSpec(c.vision_config), decoder: decoderSpec(c) });

/** BlipForQuestionAnswering: every weight by its name in the file. */
export const answerSpec = (c: BlipConfig) => ({
  vision: evaVitSpec(c.vision_config),
  encoder: bertSpec(c.text_config, "text_encoder.", reading(c)),
  decoder: decoderSpec(c),
});

/** BlipForImageTextRetrieval: every weight by its name in the file. */
export const retrievalSpec = (c: BlipConfig) => ({
  vision: evaVitSpec(c.vision_config),
  text: bertSpec(c.text_config, "text_encoder.", reading(c)),
  projectVision: linearSpec("vision_proj", c.vision_config.hidden_size, c.image_text_hidden_size),
  projectText: linearSpec("text_proj", c.text_config.hidden_size, c.image_text_hidden_size),
  matching: linearSpec("itm_head", c.text_config.hidden_size, 2),
});
export type BlipRetrievalParams = Params<ReturnType<typeof retrievalSpec>>;

/** Buffers, and the second names of tied weights. */
export const blipIgnored = /embeddings\.position_ids$|cls\.predictions\.decoder\.(weight|bias)$/;

export type BlipText = { ids: tf.Tensor2D; padding?: tf.Tensor2D };

/** A text alone, or with the picture that its layers look at. -> [B, N, D]. Taps: `embed`, `blocks.N.…` of `bert`. */
export const readText = (p: Bert, c: BertConfig, { ids, padding }: BlipText, states: tf.Tensor3D | undefined, tap: Tap): tf.Tensor3D =>
  bert(p, c, { x: bertEmbed(p, c, { ids }, tap), mask: { padding }, states }, tap);

/** Picture embeddings, not normalised. pixels: [B, S, S, 3], mean and std applied -> [B, d]. Taps: those of `evaVit`, `vision.out`. */
export const encodeImage = (p: BlipRetrievalParams, c: BlipConfig, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor2D =>
  at(tap, "vision")("out", linear(p.projectVision, firstToken(evaVit(p.vision, c.vision_config, pixels, tap))) as tf.Tensor2D);

/** Text embeddings, not normalised: no layer looks at a picture. -> [B, d]. Taps: `text.…` of `readText`, `text.out`. */
export function encodeText(p: BlipRetrievalParams, c: BlipConfig, text: BlipText, tap: Tap = noTap): tf.Tensor2D {
  const t = at(tap, "text");
  return t("out", linear(p.projectText, firstToken(readText(p.text, c.text_config, text, undefined, t))) as tf.Tensor2D);
}

/** Scores of "does not belong" and "belongs" of pairs. states: of `evaVit`, [B, M, Dv] -> [B, 2]. Taps: `text.…`. */
export const matchingLogits = (p: BlipRetrievalParams, c: BlipConfig, states: tf.Tensor3D, text: BlipText, tap: Tap = noTap): tf.Tensor2D =>
  linear(p.matching, firstToken(readText(p.text, c.text_config, text, states, at(tap, "text")))) as tf.Tensor2D;

export type DecoderReading = { states: tf.Tensor3D; padding?: tf.Tensor2D };

/** The decoder's last states. words: rows of its table, [B, N, D]; encoded: what it looks at -> [B, N, D]. Taps: `embed`, `blocks.N.…` of `bert`. */
export function decode(
  p: BlipDecoder,
  c: BertConfig,
  { words, padding, encoded, cache }: { words: tf.Tensor3D; padding?: tf.Tensor2D; encoded: DecoderReading; cache?: Cache },
  tap: Tap = noTap,
): tf.Tensor3D {
  const x = bertEmbed(p.bert, c, { words, first: cache?.length ?? 0 }, tap);
  return bert(p.bert, c, { x, mask: { causal: true, padding }, states: encoded.states, statesPadding: encoded.padding, cache }, tap);
}

/** Scores of the next word. [B, N, D] -> [B, N, V] */
export const decoderLogits = (p: BlipDecoder, c: BertConfig, hidden: tf.Tensor3D): tf.Tensor3D =>
  languageLogits(p.head, p.bert.word as tf.Tensor2D, c, hidden);

/** Cross-entropy of each next word, with the config's smoothing. logits: [B, N, V], labels: int32 [B, N], -100 where none counts -> scalar */
export function wordLoss({ text_config: c, smoothing }: BlipConfig, logits: tf.Tensor3D, labels: tf.Tensor2D): tf.Scalar {
  const [B, N] = labels.shape;
  return tf.tidy(() => {
    const before = logits.slice([0, 0, 0], [B, N - 1, c.vocab_size]).reshape([B * (N - 1), c.vocab_size]);
    return crossEntropy(before, labels.slice([0, 1], [B, N - 1]).reshape([B * (N - 1)]), { smoothing });
  });
}
