/** Our side of the workloads whose models are a Q-Former and InternVL2-1B: sizes, inputs and warm-ups of peer.py. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { openCheckpoint } from "vitrine/files/checkpoint";
import {
  embedPrompt,
  type InternVLConfig,
  type InternVLParams,
  internVLConfig,
  internVLSpec,
  projectImages,
} from "vitrine/models/internvl";
import { headWeight, llama, llamaLogits, llamaRotary } from "vitrine/models/llama";
import { qFormerConfig, qFormerSpec, readPicture } from "vitrine/models/qformer";
import { withoutGradient } from "vitrine/nn/block";
import { makeCache } from "vitrine/nn/cache";
import { headCrossEntropy } from "vitrine/nn/cross-entropy";
import { withLora } from "vitrine/nn/lora";
import { type Dtype, loadWeights } from "vitrine/nn/spec";
import type { Rotary } from "vitrine/nn/rope";
import { train } from "vitrine/train/loop";

export type Prepared = { step: () => void | Promise<void>; items: number; unit: string; warmup?: number; repetitions?: number };

const IMAGE_TOKENS = 256;
const DECODE_STEPS = 32;

/** Runs and reads the result, so that nothing is left to be computed later. */
const finish = (compute: () => tf.Tensor): void => {
  const y = tf.tidy(compute);
  y.dataSync();
  y.dispose();
};

function opened<S>(folder: string, specOf: (config: { [key: string]: unknown }) => S, dtype: Dtype) {
  const checkpoint = openCheckpoint(folder);
  const spec = specOf(checkpoint.config);
  const params = loadWeights(spec, checkpoint.tensors, { dtype, where: folder });
  checkpoint.close();
  return { spec, params };
}

export async function qFormer(folder: string, dtype: Dtype): Promise<Prepared> {
  const config = qFormerConfig(JSON.parse(readFileSync(join(folder, "config.json"), "utf8")), "config.json");
  const { params } = opened(folder, () => qFormerSpec(config), dtype);
  const queries = tf.randomNormal([8, 32, config.hidden_size], 0, 1, "float32", 1) as tf.Tensor3D;
  const states = tf.randomNormal([8, 257, config.encoder_hidden_size], 0, 1, "float32", 2) as tf.Tensor3D;
  return { step: () => finish(() => readPicture(params, config, { queries, states })), items: 8, unit: "images/s" };
}

type Vlm = { folder: string; spec: unknown; config: InternVLConfig; params: InternVLParams; rotary: Rotary };

function internVL(folder: string, dtype: Dtype): Vlm {
  let config!: InternVLConfig;
  const { spec, params } = opened(folder, (raw) => internVLSpec((config = internVLConfig(raw))), dtype);
  return { folder, spec, config, params: params as InternVLParams, rotary: llamaRotary(config.text_config) };
}

/** A prompt of 256 image tokens and text behind them, with its picture. */
function prompt({ config }: Vlm, total: number): { ids: tf.Tensor2D; pixels: tf.Tensor4D } {
  const ids = Array.from({ length: total }, (_, i) => (i < IMAGE_TOKENS ? config.image_token_id : (7919 * i) % 1000));
  const { image_size: S, num_channels: C } = config.vision_config;
  return { ids: tf.tensor2d(ids, [1, total], "int32"), pixels: tf.randomNormal([1, S, S, C], 0, 1, "float32", 1) as tf.Tensor4D };
}

const embed = ({ params, config }: Vlm, { ids, pixels }: { ids: tf.Tensor2D; pixels: tf.Tensor4D }): tf.Tensor3D =>
  embedPrompt(params, config, ids, projectImages(params, config, pixels));

const lastLogits = ({ params }: Vlm, x: tf.Tensor3D): tf.Tensor3D =>
  llamaLogits(params.language, x.slice([0, x.shape[1] - 1, 0], [-1, 1, -1]));

export async function vlmPrefill(folder: string, dtype: Dtype): Promise<Prepared> {
  const vlm = internVL(folder, dtype);
  const inputs = prompt(vlm, 320);
  const { language } = vlm.params;
  const text = vlm.config.text_config;
  const step = () =>
    finish(() => {
      const cache = makeCache(text.num_hidden_layers, 320);
      const logits = lastLogits(vlm, llama(language, text, { embeddings: embed(vlm, inputs), rotary: vlm.rotary, cache }));
      cache.dispose();
      return logits;
    });
  return { step, items: 320, unit: "tokens/s", warmup: 1 };
}

export async function vlmDecode(folder: string, dtype: Dtype): Promise<Prepared> {
  const vlm = internVL(folder, dtype);
  const text = vlm.config.text_config;
  const cache = makeCache(text.num_hidden_layers, 320 + DECODE_STEPS + 2);
  const next = (embeddings: tf.Tensor3D) =>
    tf.tidy(() => lastLogits(vlm, llama(vlm.params.language, text, { embeddings, rotary: vlm.rotary, cache })).argMax(-1) as tf.Tensor2D);
  let token = tf.tidy(() => next(embed(vlm, prompt(vlm, 320))));
  const step = () => {
    const after = tf.tidy(() => next(embedPrompt(vlm.params, vlm.config, token)));
    token.dispose();
    token = after;
    token.dataSync();
  };
  return { step, items: 1, unit: "tokens/s", repetitions: DECODE_STEPS };
}

export async function vlmLora(folder: string, dtype: Dtype, steps: number): Promise<Prepared> {
  const base = internVL(folder, dtype);
  type Model = Vlm & { modelType: string; with(params: InternVLParams): Model };
  const around = (params: InternVLParams): Model => ({
    ...base,
    modelType: "internvl",
    params,
    with: around,
  });
  const targetModules = "language_model\\..*(q|k|v|o|gate|up|down)_proj";
  const { model, adapter } = withLora(around(base.params), { targetModules, r: 16, loraAlpha: 32 });
  const { language } = model.params;
  const text = base.config.text_config;
  const inputs = prompt(base, 512);
  const labels = tf.tensor1d(
    Array.from(inputs.ids.dataSync())
      .slice(1)
      .map((id, i) => (i + 1 < IMAGE_TOKENS ? -100 : id)),
    "int32",
  );
  const loss = () =>
    tf.tidy(() => {
      const embeddings = withoutGradient(() => embed(model, inputs));
      const x = llama(language, text, { embeddings, rotary: base.rotary });
      const before = x.slice([0, 0, 0], [1, 511, -1]).reshape([511, text.hidden_size]);
      return headCrossEntropy(before, headWeight(language), labels);
    });
  const batches = (function* () {
    while (true) yield {};
  })();
  const rows = train({ variables: adapter.variables, batches, loss, steps, learningRate: 1e-4, maxGradNorm: Infinity });
  return { step: async () => void (await rows.next()), items: 1, unit: "steps/s" };
}
