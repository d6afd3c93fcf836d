/**
 * ALBEF (Li et al. 2021): a ViT, and a BERT whose lower half reads a text alone; the upper half, from `fusion_layer` on, goes on from there and looks at the
 * picture in every layer. Contrastive vectors come from the lower half, the judgement of a pair from the upper one. The momentum model that training
 * distils from takes no part. Names of weights as in the authors' files.
 */
import type { tf } from "../engine/tf";
import { blipProcessor } from "../image/processor";
import { linearSpec, normSpec } from "../nn/layers";
import { type Dtype, disposeParams, loadWeights, type Params, patchKernel, repeat, w } from "../nn/spec";
import type { Tap } from "../nn/tap";
import { loadTokenizer } from "../text/tokenizer";
import { openAlbef } from "./albef-files";
import { type Bert, type BertConfig, bert, bertConfig, bertEmbed, bertSpec } from "./bert";
import { gridOf } from "./blip";
import { readConfig } from "./config";
import { type EvaVitConfig, evaVit, evaVitConfig, type evaVitSpec } from "./eva-vit";
import { type Matcher, type MatcherFamily, matcher, readWords, type Words } from "./matcher";

/** Sizes that the authors' settings leave out are those of ViT-B/16. */
const DEFAULTS = { image_res: 256, patch_size: 16, vision_width: 768, vision_heads: 12, vision_layers: 12, embed_dim: 256 };
/** Settings of the training. */
const UNUSED =
  `bert_config temp queue_size momentum alpha distill warm_up mlm_probability batch_size batch_size_train batch_size_test k_test optimizer
  schedular train_file val_file test_file image_root`.split(/\s+/);
const FUSION = { fusion_layer: 6, encoder_width: 768 };

export type AlbefConfig = { embed_dim: number; vision_config: EvaVitConfig; text_config: BertConfig & typeof FUSION };

/**
 * config.json and config_bert.json -> config with every value present, the picture tower's keys as its own layers call them.
 * @throws listing unhandled keys and impossible sizes
 */
export function albefConfig(settings: unknown, bertRaw: { [key: string]: unknown }): AlbefConfig {
  const s = readConfig(settings, DEFAULTS, "config.json", UNUSED);
  const where = "config_bert.json";
  const { fusion_layer, encoder_width, ...rest } = bertRaw;
  const fusion = readConfig({ fusion_layer, encoder_width }, { ...FUSION, encoder_width: s.vision_width }, where) as typeof FUSION;
  const text = { ...bertConfig(rest, where), ...fusion };
  const problems: string[] = [];
  if (fusion.fusion_layer >= text.num_hidden_layers)
    problems.push(
      `fusion_layer is ${fusion.fusion_layer}, expected less than num_hidden_layers ${text.num_hidden_layers}: no layer would look at the picture`,
    );
  if (fusion.encoder_width !== s.vision_width)
    problems.push(
      `encoder_width is ${fusion.encoder_width}, but the picture tower's width ${s.vision_width} (vision_width of config.json)`,
    );
  if (problems.length) throw new Error(`${where} cannot be used: ${problems.join("; ")}`);
  const vision = {
    hidden_size: s.vision_width,
    intermediate_size: 4 * s.vision_width,
    num_hidden_layers: s.vision_layers,
    num_attention_heads: s.vision_heads,
    image_size: s.image_res,
    patch_size: s.patch_size,
  };
  return { embed_dim: s.embed_dim, vision_config: evaVitConfig(vision, "config.json"), text_config: text };
}

const VIT = "visual_encoder";
const blockSpec = (name: string, { hidden_size: D, intermediate_size: F }: EvaVitConfig) => ({
  ln1: normSpec(`${name}.norm1`, D),
  attn: { qkv: linearSpec(`${name}.attn.qkv`, D, 3 * D), out: linearSpec(`${name}.attn.proj`, D, D) },
  ln2: normSpec(`${name}.norm2`, D),
  mlp: { fc1: linearSpec(`${name}.mlp.fc1`, D, F), fc2: linearSpec(`${name}.mlp.fc2`, F, D) },
});

/** The tower of eva-vit.ts by the names of timm. */
const vitSpec = (c: EvaVitConfig): ReturnType<typeof evaVitSpec> => ({
  cls: w(`${VIT}.cls_token`, [1, 1, c.hidden_size]),
  patch: {
    weight: patchKernel(`${VIT}.patch_embed.proj.weight`, [c.hidden_size, 3, c.patch_size]),
    bias: w(`${VIT}.patch_embed.proj.bias`, [c.hidden_size]),
  },
  position: w(`${VIT}.pos_embed`, [1, Math.floor(c.image_size / c.patch_size) ** 2 + 1, c.hidden_size]),
  blocks: repeat(c.num_hidden_layers, (i) => blockSpec(`${VIT}.blocks.${i}`, c)),
  lnPost: normSpec(`${VIT}.norm`, c.hidden_size),
});

/** Every weight by its name in a fine-tuned file. */
export const albefSpec = ({ vision_config: v, text_config: t, embed_dim: d }: AlbefConfig) => ({
  vision: vitSpec(v),
  text: bertSpec(t, "text_encoder.", { pooler: false, cross: { width: t.encoder_width, at: (layer) => layer >= t.fusion_layer } }),
  projectVision: linearSpec("vision_proj", v.hidden_size, d),
  projectText: linearSpec("text_proj", t.hidden_size, d),
  temperature: w("temp", []),
  matching: linearSpec("itm_head", t.hidden_size, 2),
});
export type AlbefParams = Params<ReturnType<typeof albefSpec>>;
export type Albef = Matcher<AlbefParams, AlbefConfig>;

type Text = AlbefConfig["text_config"];

/** The lower half: a text alone. -> [B, T, D]. Taps: `embed`, `blocks.N.…` up to `fusion_layer`. */
const readText = (p: Bert, c: Text, { ids, padding }: Words, tap: Tap): tf.Tensor3D =>
  bert(p, c, { x: bertEmbed(p, c, { ids }, tap), mask: { padding }, end: c.fusion_layer }, tap);

/** The upper half goes on from the lower one's states and looks at a picture's. -> [B, T, D]. Taps: `blocks.N.…` from `fusion_layer` on. */
const fuse = (p: Bert, c: Text, x: tf.Tensor3D, states: tf.Tensor3D, { padding }: Words, tap: Tap): tf.Tensor3D =>
  bert(p, c, { x, mask: { padding }, states, first: c.fusion_layer }, tap);

/** The model in a folder of the authors' files. @throws listing every misfit of settings and weights */
export async function loadAlbef(folder: string, dtype: Dtype, file?: string): Promise<Albef> {
  const files = openAlbef(folder, file);
  try {
    const config = albefConfig(files.settings, files.bert);
    const spec = albefSpec(config);
    const tokenizer = await loadTokenizer(files.vocabulary);
    const params = loadWeights(spec, files.tensors, { dtype, where: files.file });
    const { vision_config: vision, text_config: text } = config;
    const family: MatcherFamily<AlbefParams, AlbefConfig> = {
      ...{ modelType: "albef", folder, dtype, spec, config, tokenizer, imageProcessor: blipProcessor(vision.image_size) },
      ...{ width: config.embed_dim, grid: gridOf(vision) },
      read: (texts) => readWords(tokenizer, texts, text.max_position_embeddings),
      see: (p, pixels, tap) => evaVit(p.vision, vision, pixels, tap),
      readText: (p, words, tap) => readText(p.text, text, words, tap),
      readPair: (p, states, words, tap, textTap) => fuse(p.text, text, readText(p.text, text, words, textTap), states, words, tap),
      temperature: (p) => p.temperature,
      dispose: () => disposeParams(spec, params),
    };
    return matcher(family, params);
  } finally {
    files.close();
  }
}
