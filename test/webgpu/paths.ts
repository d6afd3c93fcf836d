/** Run by test/webgpu/webgpu.test.ts, in a process on WebGPU and in its own on another backend: what people do with a model, in numbers to compare. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { random } from "vitrine/data/random";
import { embedImages, embedTexts, pixelBatch } from "vitrine/embed";
import { tf } from "vitrine/engine";
import type { Picture } from "vitrine/image/picture";
import { type Clip, load } from "vitrine/models";
import { saveModel } from "vitrine/models/save";
import { mergeLora, withLora } from "vitrine/nn/lora";
import { loadAdapter, saveAdapter } from "vitrine/nn/peft";
import { record } from "vitrine/nn/tap";
import { neighbours, retrieval, zeroShot } from "vitrine/retrieval";
import { pairBatches, pairLoss } from "vitrine/train/contrastive";
import { train } from "vitrine/train/loop";

const TEXTS = ["a red apple", "a yellow face that laughs", "clock"];

const draw = random(4);
const picture = (): Picture => ({ width: 20, height: 20, data: Uint8Array.from({ length: 1200 }, () => 255 * draw()) });

/** Numbers of every path, by what gave them. `left`: tensors that a path left behind, a model and adapters aside. */
export async function paths(model: string): Promise<{ numbers: { [path: string]: number[] }; left: number }> {
  const clip = await load(model);
  const pictures = TEXTS.map(picture);
  const before = tf.memory().numTensors;
  const numbers = { ...(await look(clip, pictures)), ...(await learn(clip, pictures)) };
  return { numbers, left: tf.memory().numTensors - before };
}

async function look(clip: Clip, pictures: Picture[]): Promise<{ [path: string]: number[] }> {
  const [images, texts] = [await embedImages(clip, pictures, { batchSize: 2 }), await embedTexts(clip, TEXTS)];
  const { tap, seen } = record(/blocks\.0\.attn\.pattern$/);
  tf.tidy(() => clip.encodeImage(pixelBatch(clip, pictures), tap)).dispose();
  const pattern = (await seen.get("vision.blocks.0.attn.pattern").array()) as number[][][][];
  seen.dispose();
  return {
    images: [...images.values],
    texts: [...texts.values],
    pattern: pattern.flat(3),
    retrieval: (await retrieval(images, texts)).array("R@5") as number[],
    neighbours: (await neighbours(texts, images, 3)).array("score") as number[],
    zeroShot: (await zeroShot(clip, pictures, TEXTS)).array("score") as number[],
  };
}

/** Two steps without dropout, saved, loaded, merged, and saved as a model; then one with dropout, whose draws differ. */
async function learn(clip: Clip, pictures: Picture[]): Promise<{ [path: string]: number[] }> {
  const folder = mkdtempSync(join(tmpdir(), "vitrine-paths-"));
  const pairs = pictures.map((one, i) => ({ caption: TEXTS[i], image: async () => one }));
  const { model, adapter } = withLora(clip, { targetModules: ["q_proj", "fc1"], r: 4, loraAlpha: 8, loraDropout: 0.1 });
  const rows = async (steps: number) => {
    const options = { variables: adapter.variables, batches: pairBatches(model, pairs, { batchSize: 3 }), loss: pairLoss(model), steps };
    const numbers: number[] = [];
    for await (const { loss, gradNorm } of train({ ...options, learningRate: 1e-3 })) numbers.push(loss, gradNorm);
    return numbers;
  };
  const vectors = async (of: Clip) => [...(await embedTexts(of, TEXTS)).values];
  try {
    const training = await rows(2);
    await saveAdapter(model, adapter, join(folder, "adapter"));
    const again = loadAdapter(clip, join(folder, "adapter"));
    const merged = mergeLora(again.model);
    await saveModel(merged.model, join(folder, "model"));
    const whole = await load(join(folder, "model"));
    const numbers = { training, trained: await vectors(model), loaded: await vectors(again.model), whole: await vectors(whole) };
    adapter.training(true);
    await rows(1);
    merged.disposeMerged();
    for (const one of [whole, adapter, again.adapter]) one.dispose();
    return numbers;
  } finally {
    rmSync(folder, { recursive: true });
  }
}
