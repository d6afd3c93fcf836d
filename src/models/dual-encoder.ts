/**
 * VisionTextDualEncoder: any picture tower and any text tower, each pooled and projected into one space, trained as CLIP is (LiT, Zhai et al. 2022). Here
 * ViT or CLIP's tower beside BERT. Numbers as transformers/models/vision_text_dual_encoder/modeling_vision_text_dual_encoder.py.
 */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import type { TensorSource } from "../files/dtype";
import { loadImageProcessor } from "../image/processor";
import { layerNorm, linear, linearSpec, projectionSpec } from "../nn/layers";
import { type Dtype, disposeParams, loadWeights, type Params, w } from "../nn/spec";
import { at, noTap, type Tap } from "../nn/tap";
import { loadTokenizer } from "../text/tokenizer";
import { type BertConfig, bert, bertConfig, bertEmbed, bertIgnored, bertPool, bertSpec } from "./bert";
import { type ClipVision, clipLogits, clipStates, clipVisionConfig, clipVisionSpec, contrastiveLoss, type VisionConfig } from "./clip";
import { checkKnown, readConfig } from "./config";
import type { DualEncoder } from "./loaded";
import { firstToken, poolFirst, type Vit, type VitConfig, vit, vitConfig, vitModule, vitSpec } from "./vit";

const DEFAULTS = { projection_dim: 512, logit_scale_init_value: 2.6592 };

type VisionPart = { kind: "vit"; vit: VitConfig } | { kind: "clip_vision_model"; vit: VisionConfig };
export type DualConfig = typeof DEFAULTS & { vision: VisionPart; vision_config: VitConfig | VisionConfig; text_config: BertConfig };

/** `config.json` -> config with every value present. @throws listing unhandled keys and impossible sizes */
export function dualConfig({ vision_config, text_config, ...rest }: { [key: string]: unknown }): DualConfig {
  const where = "config.json: vision_config: model_type";
  const kind = String((vision_config as { model_type?: string } | undefined)?.model_type ?? "vit");
  const text = String((text_config as { model_type?: string } | undefined)?.model_type ?? "bert");
  checkKnown(where, kind, ["vit", "clip_vision_model"]);
  checkKnown("config.json: text_config: model_type", text, ["bert"]);
  const vision: VisionPart =
    kind === "vit" ? { kind, vit: vitConfig(vision_config) } : { kind: "clip_vision_model", vit: clipVisionConfig(vision_config) };
  return { ...readConfig(rest, DEFAULTS, "config.json"), vision, vision_config: vision.vit, text_config: bertConfig(text_config) };
}

/** Every weight of the checkpoint by its name in the file. */
export const dualSpec = ({ vision: v, text_config: t, projection_dim }: DualConfig) => ({
  vision: {
    tower: v.kind === "vit" ? vitSpec(v.vit, "vision_model.") : clipVisionSpec(v.vit, "vision_model.vision_model."),
    ...(v.kind === "vit" ? { pooler: linearSpec("vision_model.pooler.dense", v.vit.hidden_size, v.vit.hidden_size) } : {}),
    project: projectionSpec("visual_projection", v.vit.hidden_size, projection_dim),
  },
  text: {
    ...bertSpec(t, "text_model."),
    project: projectionSpec("text_projection", t.hidden_size, projection_dim),
  },
  logitScale: w("logit_scale", []),
});
export type DualParams = Params<ReturnType<typeof dualSpec>>;

/**
 * Picture embeddings, not normalised. pixels: [B, H, W, 3], mean and std of the checkpoint applied -> [B, projection_dim]
 * Taps: `vision.…` of `vit` or CLIP's tower, `vision.pooled`, `vision.out`.
 */
export function encodeImage(p: DualParams["vision"], v: VisionPart, pixels: tf.Tensor4D, tap: Tap = noTap): tf.Tensor2D {
  const t = at(tap, "vision");
  const pooled =
    v.kind === "vit" ? poolFirst(p.pooler!, vit(p.tower as Vit, v.vit, pixels, t).final, t) : clipPooled(p, v.vit, pixels, tap);
  return t("out", linear(p.project, pooled) as tf.Tensor2D);
}

function clipPooled(p: DualParams["vision"], c: VisionConfig, pixels: tf.Tensor4D, tap: Tap): tf.Tensor2D {
  const tower = p.tower as ClipVision;
  const [x] = clipStates(tower, c, pixels, [-1], tap);
  return at(tap, "vision")("pooled", layerNorm(tower.lnPost, firstToken(x), c.layer_norm_eps) as tf.Tensor2D);
}

/**
 * Text embeddings, not normalised. ids, mask: int32 [B, N] (1 = real token; none = all real) -> [B, projection_dim]
 * Taps: `text.embed`, `text.blocks.N.…` of `bert`, `text.pooled`, `text.out`.
 */
export function encodeText(p: DualParams["text"], c: BertConfig, ids: tf.Tensor2D, mask?: tf.Tensor2D, tap: Tap = noTap): tf.Tensor2D {
  const t = at(tap, "text");
  const x = bert(p, c, { x: bertEmbed(p, c, { ids }, t), mask: { padding: mask } }, t); //           [B, N, D]
  return t("out", linear(p.project, bertPool(p, x, t)) as tf.Tensor2D);
}

/** VisionTextDualEncoder with the tokenizer and image processor of its checkpoint. */
export type VisionTextDualEncoder = DualEncoder<DualParams> & {
  modelType: "vision-text-dual-encoder";
  config: DualConfig;
  with(params: DualParams): VisionTextDualEncoder;
};

/** CLIP's tower stands in a module of its own in published files, and no longer in transformers 5. */
const published = (tensors: Map<string, TensorSource>, { vision }: DualConfig): Map<string, TensorSource> =>
  vision.kind === "vit"
    ? tensors
    : new Map([...tensors].map(([name, x]) => [name.replace(/^vision_model\.(?!vision_model\.)/, "vision_model.vision_model."), x]));

/** Module names of transformers 5: ViT's changed, and CLIP's tower is no module of its own any more. */
const moduleOf = (name: string, { vision }: DualConfig): string => {
  if (!name.startsWith("vision_model.")) return name;
  return vision.kind === "vit" ? vitModule(name) : name.replace("vision_model.vision_model.", "vision_model.");
};

/** The model in an open checkpoint. @throws listing every misfit of config and weights */
export async function loadDualEncoder({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype): Promise<VisionTextDualEncoder> {
  const config = dualConfig(raw);
  const [tokenizer, imageProcessor] = [await loadTokenizer(folder), loadImageProcessor(folder)];
  const spec = dualSpec(config);
  const params = loadWeights(spec, published(tensors, config), { dtype, ignore: bertIgnored, where: folder });
  const side = Math.floor(config.vision_config.image_size / config.vision_config.patch_size);
  const around = (params: DualParams): VisionTextDualEncoder => ({
    modelType: "vision-text-dual-encoder",
    ...{ folder, dtype, config, spec, params, tokenizer, imageProcessor },
    grid: [side, side],
    width: config.projection_dim,
    moduleName: (name) => moduleOf(name, config),
    encodeImage: (pixels, tap = noTap) => tf.tidy(() => encodeImage(params.vision, config.vision, pixels, tap)),
    encodeText: (ids, mask, tap = noTap) => tf.tidy(() => encodeText(params.text, config.text_config, ids, mask, tap)),
    logits: (images, texts) => tf.tidy(() => clipLogits(params.logitScale, images, texts)),
    loss: (images, texts) => tf.tidy(() => contrastiveLoss(params.logitScale, images, texts)),
    with: around,
    dispose: () => disposeParams(spec, params),
  });
  return around(params);
}
