/**
 * BLIP (Li et al. 2022): a ViT, and a BERT that reads a text alone, reads it while every layer looks at the picture, or writes one. Three checkpoints
 * are published, for retrieval (blip-retrieval.ts), captions and questions (blip-language.ts); this is what they share.
 * Numbers as transformers/models/blip/modeling_blip.py and modeling_blip_text.py; names of weights and config keys as in its checkpoints.
 */
import { tf } from "../engine/tf";
import type { TensorSource } from "../files/safetensors";
import { matrix, type Params } from "../nn/spec";
import type { Tap } from "../nn/tap";
import { type Bert, type BertConfig, bert, bertConfig, bertEmbed, bertSpec } from "./bert";
import { readConfig } from "./config";
import { type EvaVitConfig, evaVitConfig } from "./eva-vit";
import type { Words } from "./matcher";
import { languageHeadSpec } from "./qformer";

const VISION = { num_hidden_layers: 12, num_attention_heads: 12, hidden_size: 768, intermediate_size: 3072, image_size: 384 };
const VISION_DEFAULTS = { ...VISION, patch_size: 16, layer_norm_eps: 1e-5 };
const TEXT_DEFAULTS = { vocab_size: 30524, num_attention_heads: 8 };
/** What BLIP's text_config has and BERT's has not. */
const OWN = { label_smoothing: 0, bos_token_id: 30522, sep_token_id: 102, is_decoder: true };
const DEFAULTS = { image_text_hidden_size: 256 };
const UNUSED = "projection_dim eos_token_id logit_scale_init_value label_smoothing text_config_dict vision_config_dict".split(" ");

export type BlipTextConfig = BertConfig & typeof OWN;
export type BlipConfig = { image_text_hidden_size: number; vision_config: EvaVitConfig; text_config: BlipTextConfig };

/** config.json of a BLIP -> config with every value present. @throws listing unhandled keys and impossible sizes */
export function blipConfig(raw: { [key: string]: unknown }): BlipConfig {
  const { vision_config, text_config, ...rest } = raw;
  const where = "config.json: text_config";
  const { encoder_hidden_size: _, ...given } = (text_config ?? {}) as { [key: string]: unknown }; // always that of the picture tower
  const [mine, others] = [given, given].map((all, i) =>
    Object.fromEntries(Object.entries(all).filter(([key]) => key in OWN === (i === 0))),
  );
  const own = readConfig(mine, OWN, where) as typeof OWN;
  if (!own.is_decoder) throw new Error(`${where}: is_decoder is false; without it no layer looks at the picture, which every BLIP does`);
  return {
    ...readConfig(rest, DEFAULTS, "config.json", UNUSED),
    vision_config: evaVitConfig({ ...VISION_DEFAULTS, ...(vision_config as object) }, undefined, [
      "projection_dim",
      "num_channels",
      "eos_token_id",
    ]),
    text_config: { ...bertConfig({ ...TEXT_DEFAULTS, ...others }, where, ["projection_dim"]), ...own },
  };
}

/** Rows and columns of patches. */
export const gridOf = ({ image_size, patch_size }: EvaVitConfig): [number, number] => {
  const side = Math.floor(image_size / patch_size);
  return [side, side];
};

/** A BERT whose every layer can look at states of `width` numbers. prefix: "text_encoder." */
export const textSpec = (c: BlipTextConfig, prefix: string, width: number) =>
  bertSpec(c, prefix, { pooler: false, tokenTypes: false, cross: { width } });

/** The states of texts, alone or while they look at `states`. -> [B, T, D]. Taps: `embed`, `blocks.N.…` as BERT's. */
export const readTexts = (p: Bert, c: BertConfig, { ids, padding }: Words, states: tf.Tensor3D | undefined, tap: Tap): tf.Tensor3D =>
  tf.tidy(() => bert(p, c, { x: bertEmbed(p, c, { ids }, tap), mask: { padding }, states }, tap));

/** A BERT that writes, and its head. prefix: "text_decoder."; ownHead: of `headIsItsOwn` */
export const writerSpec = (c: BlipTextConfig, prefix: string, width: number, ownHead: boolean) => ({
  bert: textSpec(c, `${prefix}bert.`, width),
  head: languageHeadSpec(c, `${prefix}cls.predictions.`),
  ...(ownHead ? { words: matrix(`${prefix}cls.predictions.decoder.weight`, [c.vocab_size, c.hidden_size]) } : {}),
});
export type Writer = Params<ReturnType<typeof writerSpec>>;

/** Whether the head has a matrix that is no copy of the word table. Files of older versions hold a copy. */
export function headIsItsOwn(tensors: Map<string, TensorSource>, prefix: string): boolean {
  const [head, table] = ["cls.predictions.decoder", "bert.embeddings.word_embeddings"].map((name) =>
    tensors.get(`${prefix}${name}.weight`),
  );
  if (!head || !table) return false;
  return head.dtype !== table.dtype || head.byteLength !== table.byteLength || Buffer.compare(head.read(), table.read()) !== 0;
}

/** Names that a file may hold besides: buffers, and copies of tied weights. */
export const blipIgnored = /embeddings\.position_ids$|cls\.predictions\.decoder\.(weight|bias)$/;
