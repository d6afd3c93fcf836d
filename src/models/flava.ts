/**
 * FLAVA (Singh et al. 2022): a picture encoder, a text encoder, and a third one that reads what both say, all of ViT's blocks. Pictures and texts alone meet
 * in a contrastive space; together they are matched, and what is masked in them is guessed. Numbers as transformers/models/flava/modeling_flava.py; names of
 * weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import { loadImageProcessor } from "../image/processor";
import { activationName, embedding, layerNorm, linear, linearSpec, normSpec } from "../nn/layers";
import { type Dtype, disposeParams, loadWeights, matrix, type Params, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { loadTokenizer } from "../text/tokenizer";
import { clipLogits, contrastiveLoss } from "./clip";
import { checkKnown, readConfig } from "./config";
import { type CodebookConfig, codebookConfig, codebookLogits, codebookSpec } from "./flava-codebook";
import { type EncoderConfig, encoder } from "./encoder";
import type { DualEncoder } from "./loaded";
import { checkVit, firstToken, type Masked, poolFirst, VIT_BLOCKS, VIT_DEFAULTS, VIT_UNUSED, vit, vitBlocks, vitSpec } from "./vit";

const TEXT_DEFAULTS = {
  ...VIT_BLOCKS,
  ...{ vocab_size: 30522, type_vocab_size: 2, max_position_embeddings: 512, position_embedding_type: "absolute" },
};
const IMAGE_DEFAULTS = { ...VIT_DEFAULTS, mask_token: true, vocab_size: 8192 };
const MULTIMODAL_DEFAULTS = { ...VIT_BLOCKS, num_hidden_layers: 6, use_cls_token: true };
const FLAVA_DEFAULTS = { hidden_size: 768, layer_norm_eps: 1e-12, projection_dim: 768, logit_scale_init_value: 2.6592 };

export type FlavaTextConfig = typeof TEXT_DEFAULTS;
export type FlavaImageConfig = typeof IMAGE_DEFAULTS;
export type FlavaConfig = typeof FLAVA_DEFAULTS &
  typeof LOSS_WEIGHTS & {
    text_config: FlavaTextConfig;
    image_config: FlavaImageConfig;
    multimodal_config: typeof MULTIMODAL_DEFAULTS;
    image_codebook_config: CodebookConfig;
  };

/** How much each loss of pre-training counts. */
const LOSS_WEIGHTS = { mim_weight: 1, mlm_weight: 1, itm_weight: 1, mmm_image_weight: 1, mmm_text_weight: 1, global_contrastive_weight: 1 };

/** Of how training is spread and labelled, and whether the reference makes a codebook: ours is where the file has one. */
const UNUSED = `init_codebook initializer_range ce_ignore_index global_backprop_contrastive skip_unmasked_multimodal_encoder return_loss
  hidden_size_multimodal`.split(/\s+/);

/** `config.json` of a FLAVA checkpoint -> config with every value present. @throws listing unhandled keys and impossible sizes */
export function flavaConfig(raw: { [key: string]: unknown }): FlavaConfig {
  const rest = { ...raw };
  const take = (key: string): unknown => {
    const twin = `${key}_dict`; // the twins of old files win where they are given, as in transformers
    const given = rest[twin] ? { ...(rest[key] as object), ...(rest[twin] as object) } : rest[key];
    delete rest[key];
    delete rest[twin];
    return given;
  };
  const part = <D extends typeof VIT_BLOCKS>(key: string, defaults: D): D => {
    const where = `config.json: ${key}`;
    return checkVit(where, readConfig(take(key), defaults, where, VIT_UNUSED) as unknown as D);
  };
  const parts = {
    text_config: part("text_config", TEXT_DEFAULTS),
    image_config: part("image_config", IMAGE_DEFAULTS),
    multimodal_config: part("multimodal_config", MULTIMODAL_DEFAULTS),
  };
  checkKnown("config.json: text_config: position_embedding_type", parts.text_config.position_embedding_type, ["absolute"]);
  const image_codebook_config = codebookConfig(take("image_codebook_config"));
  return { ...readConfig(rest, { ...FLAVA_DEFAULTS, ...LOSS_WEIGHTS }, "config.json", UNUSED), ...parts, image_codebook_config };
}

const guessSpec = (name: string, D: number, words: number) => ({
  dense: linearSpec(`${name}.transform.dense`, D, D),
  norm: normSpec(`${name}.transform.LayerNorm`, D),
  decoder: linearSpec(`${name}.decoder`, D, words),
});

/** What FlavaForPreTraining has beside FlavaModel. */
const headsSpec = ({ text_config: t, image_config: v, multimodal_config: m, hidden_size: D }: FlavaConfig) => ({
  itm: { pooler: linearSpec("itm_head.pooler.dense", D, D), out: linearSpec("itm_head.seq_relationship", D, 2) },
  mlm: guessSpec("mlm_head", t.hidden_size, t.vocab_size),
  mim: guessSpec("mim_head", v.hidden_size, v.vocab_size),
  mmmText: guessSpec("mmm_text_head", m.hidden_size, t.vocab_size),
  mmmImage: guessSpec("mmm_image_head", m.hidden_size, v.vocab_size),
});

/**
 * Every weight of the checkpoint by its name in the file. prefix: "flava." in files of FlavaForPreTraining, which have heads and, with `codebook`, what
 * turns pictures into visual words; "" in FlavaModel's.
 */
export const flavaSpec = (c: FlavaConfig, { prefix = "flava.", codebook = true } = {}) => {
  const { text_config: t, image_config: v, multimodal_config: m } = c;
  const words = `${prefix}text_model.embeddings`;
  return {
    image: {
      ...vitSpec(v, `${prefix}image_model.`),
      ...(v.mask_token ? { mask: w(`${prefix}image_model.embeddings.mask_token`, [1, 1, v.hidden_size]) } : {}),
      project: linearSpec(`${prefix}image_projection`, v.hidden_size, c.projection_dim),
      toMultimodal: linearSpec(`${prefix}image_to_mm_projection`, v.hidden_size, m.hidden_size),
    },
    text: {
      word: matrix(`${words}.word_embeddings.weight`, [t.vocab_size, t.hidden_size]),
      position: w(`${words}.position_embeddings.weight`, [t.max_position_embeddings, t.hidden_size]),
      type: w(`${words}.token_type_embeddings.weight`, [t.type_vocab_size, t.hidden_size]),
      lnEmbed: normSpec(`${words}.LayerNorm`, t.hidden_size),
      blocks: vitBlocks(t, `${prefix}text_model.`),
      norm: normSpec(`${prefix}text_model.layernorm`, t.hidden_size),
      project: linearSpec(`${prefix}text_projection`, t.hidden_size, c.projection_dim),
      toMultimodal: linearSpec(`${prefix}text_to_mm_projection`, t.hidden_size, m.hidden_size),
    },
    multimodal: {
      ...(m.use_cls_token ? { cls: w(`${prefix}multimodal_model.cls_token`, [1, 1, m.hidden_size]) } : {}),
      blocks: vitBlocks(m, `${prefix}multimodal_model.`),
      norm: normSpec(`${prefix}multimodal_model.layernorm`, m.hidden_size),
    },
    logitScale: w(`${prefix}logit_scale`, []),
    ...(prefix ? { heads: headsSpec(c) } : {}),
    ...(codebook ? { codebook: codebookSpec(c.image_codebook_config, "image_codebook.") } : {}),
  };
};
export type FlavaParams = Params<ReturnType<typeof flavaSpec>>;

/** Poolers that no output reads, position numbers, and the second name of a decoder's bias. */
export const flavaIgnored = /_model\.pooler\.|\.position_ids$|_head\.bias$/;

/** Every token of a text, before and behind the last norm. ids, mask: int32 [B, N] -> each [B, N, D]. Taps: `embed`, `blocks.N.…`, `final`. */
function readText(p: FlavaParams["text"], c: FlavaTextConfig, ids: tf.Tensor2D, mask: tf.Tensor2D | undefined, tap: Tap) {
  const N = ids.shape[1];
  if (N > c.max_position_embeddings)
    throw new RangeError(`encodeText: ${N} tokens, the model has ${c.max_position_embeddings} positions; truncate (tokenizer.batch does)`);
  const place = p.position.slice([0, 0], [N, c.hidden_size]).add(p.type.slice([0, 0], [1, c.hidden_size]));
  const x = tap("embed", layerNorm(p.lnEmbed, embedding(p.word, ids).add(place) as tf.Tensor3D, c.layer_norm_eps)); // [B, N, D]
  const states = encoder(p.blocks, c as EncoderConfig, x as tf.Tensor3D, tap, { padding: mask });
  return { states, final: tap("final", layerNorm(p.norm, states, c.layer_norm_eps) as tf.Tensor3D) };
}

/**
 * Picture embeddings, not normalised. pixels: [B, H, W, 3], mean and std of the checkpoint applied -> [B, projection_dim].
 * Taps: `vision.…` as `vit`'s, `vision.out`.
 */
export function encodeImage(p: FlavaParams["image"], c: FlavaImageConfig, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor2D {
  const t = at(tap, "vision");
  return t("out", linear(p.project, firstToken(vit(p, c, pixels, t).final)) as tf.Tensor2D);
}

/** Text embeddings, not normalised. ids, mask: int32 [B, N] (1 = real token; none = all real) -> [B, projection_dim]. Taps as for pictures, under `text.`. */
export function encodeText(
  p: FlavaParams["text"],
  c: FlavaTextConfig,
  ids: tf.Tensor2D,
  mask?: tf.Tensor2D,
  tap: Tap = noTap,
): tf.Tensor2D {
  const t = at(tap, "text");
  return t("out", linear(p.project, firstToken(readText(p, c, ids, mask, t).final)) as tf.Tensor2D);
}

/** Hides patches of a picture. where: int32 [B, N], 1 where a patch is hidden. @throws for a model without a token that stands for them */
function hiding({ mask: token }: FlavaParams["image"], where: tf.Tensor2D | undefined): Masked | undefined {
  if (!where) return undefined;
  if (!token) throw new Error("config.json: image_config: mask_token is false, so no patch can be hidden");
  return { token, where };
}

/**
 * Pictures and texts read together, pair by pair: class token, the picture's tokens, the text's. hidden: patches that are not shown.
 * -> [B, 1 + picture + text, D]
 * Taps: `vision.…`, `text.…`, `multimodal.{embed,blocks.N.…,final}`.
 */
export function encodePairs(
  p: FlavaParams,
  c: FlavaConfig,
  { pixels, ids, mask, hidden }: { pixels: tf.Tensor4D; ids: tf.Tensor2D; mask?: tf.Tensor2D; hidden?: tf.Tensor2D },
  tap: Tap = noTap,
): tf.Tensor3D {
  const t = at(tap, "multimodal");
  const seen = vit(p.image, c.image_config, pixels, at(tap, "vision"), hiding(p.image, hidden)).states;
  const image = linear(p.image.toMultimodal, seen) as tf.Tensor3D;
  const text = linear(p.text.toMultimodal, readText(p.text, c.text_config, ids, mask, at(tap, "text")).states) as tf.Tensor3D;
  const [B, before] = [ids.shape[0], image.shape[1] + (p.multimodal.cls ? 1 : 0)];
  const cls = p.multimodal.cls ? [p.multimodal.cls.tile([B, 1, 1]) as tf.Tensor3D] : [];
  const x = t("embed", tf.concat([...cls, image, text], 1) as tf.Tensor3D); //                        [B, M, D]
  const padding = mask && (tf.concat([tf.ones([B, before], "int32"), mask], 1) as tf.Tensor2D);
  const states = encoder(p.multimodal.blocks, c.multimodal_config as EncoderConfig, x, t, { padding });
  return t("final", layerNorm(p.multimodal.norm, states, c.multimodal_config.layer_norm_eps) as tf.Tensor3D);
}

type Heads = NonNullable<FlavaParams["heads"]>;

/** Scores of words, of a text or of the codebook: [B, N, D] -> [B, N, V] */
const guess = (p: Heads["mlm"], x: tf.Tensor3D, { hidden_act, layer_norm_eps }: typeof VIT_BLOCKS): tf.Tensor3D =>
  linear(p.decoder, layerNorm(p.norm, linear(p.dense, x, { activation: activationName(hidden_act) }), layer_norm_eps)) as tf.Tensor3D;

/** FLAVA with the tokenizer and image processor of its checkpoint. */
export type Flava = DualEncoder<FlavaParams> & {
  modelType: "flava";
  config: FlavaConfig;
  /** Pictures and texts read together, pair by pair: [B, 1 + picture + text, D]. hidden: int32 [B, N], 1 where a patch is not shown. */
  encodePairs(pixels: tf.Tensor4D, ids: tf.Tensor2D, mask?: tf.Tensor2D, tap?: Tap, hidden?: tf.Tensor2D): tf.Tensor3D;
  /** Scores of "does not belong" and "belongs" for what `encodePairs` gives: [B, M, D] -> [B, 2]. @throws for a checkpoint without heads */
  matching(pairs: tf.Tensor3D): tf.Tensor2D;
  /** Scores of the words of a text that is read alone: [B, N, V]. @throws for a checkpoint without heads */
  wordLogits(ids: tf.Tensor2D, mask?: tf.Tensor2D, tap?: Tap): tf.Tensor3D;
  /** Scores of the words of a text, its picture seen: what `encodePairs` gives -> [B, N, V], N the text's tokens. @throws for a checkpoint without heads */
  wordLogitsSeeing(pairs: tf.Tensor3D, tokens: number): tf.Tensor3D;
  /**
   * Scores of the codebook's words for every patch of pictures read alone: [B, N, V]. hidden: int32 [B, N], 1 where a patch is to be guessed.
   * @throws for a checkpoint without heads, and for one without a mask token where patches are hidden
   */
  patchLogits(pixels: tf.Tensor4D, hidden?: tf.Tensor2D, tap?: Tap): tf.Tensor3D;
  /** The same, the text seen: what `encodePairs` gives -> [B, N, V], N the picture's patches. @throws for a checkpoint without heads */
  patchLogitsSeeing(pairs: tf.Tensor3D, patches?: number): tf.Tensor3D;
  /**
   * The codebook's word of every 8 x 8 pixels, row by row: what a patch's guess should be. pixels: [B, H, W, 3] of `loadCodebookProcessor(folder)`
   * -> int32 [B, H/8 · W/8]. @throws for a checkpoint without a codebook
   */
  visualWords(pixels: tf.Tensor4D): tf.Tensor2D;
  with(params: FlavaParams): Flava;
};

/** The model in an open checkpoint. @throws listing every misfit of config and weights */
export async function loadFlava({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype): Promise<Flava> {
  const config = flavaConfig(raw);
  const [tokenizer, imageProcessor] = [await loadTokenizer(folder), loadImageProcessor(folder)];
  const { text_config: t, image_config: v } = config;
  const prefix = [...tensors.keys()].some((name) => name.startsWith("flava.")) ? "flava." : "";
  const codebook = [...tensors.keys()].some((name) => name.startsWith("image_codebook."));
  const spec = flavaSpec(config, { prefix, codebook });
  const params = loadWeights(spec, tensors, { dtype, ignore: flavaIgnored, where: folder });
  const side = Math.floor(v.image_size / v.patch_size);
  const around = (params: FlavaParams): Flava => {
    const heads = (): Heads => {
      if (params.heads) return params.heads;
      throw new Error(`${folder} holds FlavaModel's weights, without the heads of FlavaForPreTraining that match and guess`);
    };
    return {
      modelType: "flava",
      ...{ folder, dtype, config, spec, params, tokenizer, imageProcessor },
      grid: [side, side],
      width: config.projection_dim,
      moduleName: (name) => name.replace(/^flava\./, ""),
      encodeImage: (pixels, tap = noTap) => tf.tidy(() => encodeImage(params.image, v, pixels, tap)),
      encodeText: (ids, mask, tap = noTap) => tf.tidy(() => encodeText(params.text, t, ids, mask, tap)),
      encodePairs: (pixels, ids, mask, tap = noTap, hidden) =>
        tf.tidy(() => encodePairs(params, config, { pixels, ids, mask, hidden }, tap)),
      matching: (pairs) => tf.tidy(() => linear(heads().itm.out, poolFirst(heads().itm.pooler, pairs)) as tf.Tensor2D),
      wordLogits: (ids, mask, tap = noTap) =>
        tf.tidy(() => guess(heads().mlm, readText(params.text, t, ids, mask, at(tap, "text")).final, t)),
      wordLogitsSeeing: (pairs, tokens) =>
        tf.tidy(() => guess(heads().mmmText, pairs.slice([0, pairs.shape[1] - tokens, 0], [-1, tokens, -1]), t)),
      patchLogits: (pixels, hidden, tap = noTap) =>
        tf.tidy(() => {
          const { final } = vit(params.image, v, pixels, at(tap, "vision"), hiding(params.image, hidden));
          return guess(heads().mim, final.slice([0, 1, 0], [-1, -1, -1]), v);
        }),
      patchLogitsSeeing: (pairs, patches = side * side) =>
        tf.tidy(() => guess(heads().mmmImage, pairs.slice([0, (params.multimodal.cls ? 1 : 0) + 1, 0], [-1, patches, -1]), v)),
      visualWords: (pixels) =>
        tf.tidy(() => {
          if (!params.codebook) throw new Error(`${folder} holds no codebook (image_codebook.…), which says what a patch's word is`);
          return codebookLogits(params.codebook, config.image_codebook_config, pixels).argMax(-1).reshape([pixels.shape[0], -1]);
        }),
      logits: (images, texts) => tf.tidy(() => clipLogits(params.logitScale, images, texts)),
      loss: (images, texts) => tf.tidy(() => contrastiveLoss(params.logitScale, images, texts)),
      with: around,
      dispose: () => disposeParams(spec, params),
    };
  };
  return around(params);
}
