/** bfloat16 beside PyTorch's: no farther from float32 than it is, in embeddings and in the losses of a LoRA run. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { hasNative } from "vitrine/engine/native";
import { load } from "vitrine/models";
import { unit } from "vitrine/models/clip";
import { loadAdapter } from "vitrine/nn/peft";
import type { Dtype } from "vitrine/nn/spec";
import { adamW, clipGradients, globalNorm } from "vitrine/train/adamw";
import { openOracle } from "../parity/check";
import { inputs, MODEL, ORACLE } from "../support/clip";
import { cosine, farthest } from "../support/close";
import { noReference, reference } from "../support/reference";

before(() => engine().then(() => {}));

type Embeddings = { images: number[]; texts: number[] };
const ARRAYS = join(ORACLE, "clip", "arrays.safetensors");

async function embeddings(dtype: Dtype): Promise<Embeddings> {
  const clip = await load(MODEL, { dtype });
  const { pixels, ids, mask } = inputs();
  return tf.tidy(() => ({
    images: [...unit(clip.encodeImage(pixels)).dataSync()],
    texts: [...unit(clip.encodeText(ids, mask)).dataSync()],
  }));
}

test("CLIP in bfloat16 is no farther from float32 than PyTorch's bfloat16 is", { skip: noReference }, async (t) => {
  if (!hasNative("linear"))
    return t.skip("the packed product needs a processor with bfloat16 instructions; off.test.ts compares the other way");
  const job = { kind: "logits", model: MODEL, arrays: ARRAYS };
  const [theirsWide, theirs] = reference([job, { ...job, dtype: "bfloat16" }]) as Embeddings[];
  const [wide, narrow] = [await embeddings("float32"), await embeddings("bfloat16")];
  for (const of of ["images", "texts"] as const) {
    const [error, peer] = [farthest(narrow[of], wide[of]), farthest(theirs[of], theirsWide[of])];
    const [angle, peerAngle] = [1 - cosine(narrow[of], wide[of]), 1 - cosine(theirs[of], theirsWide[of])];
    t.diagnostic(`${of}: largest error ${error.toExponential(1)} (PyTorch ${peer.toExponential(1)})`);
    t.diagnostic(`${of}: 1 - cosine ${angle.toExponential(1)} (PyTorch ${peerAngle.toExponential(1)})`);
    assert.ok(error <= peer, `${of}: largest error ${error}, PyTorch's ${peer}`);
    assert.ok(angle <= peerAngle, `${of}: 1 - cosine ${angle}, PyTorch's ${peerAngle}`);
  }
});

/** Losses of the oracle's LoRA run with our bfloat16 weights. */
async function losses(run: { adapter_init: string; learning_rates: number[]; optimizer: { [key: string]: never } }): Promise<number[]> {
  const clip = await load(MODEL, { dtype: "bfloat16" });
  const { model, adapter } = loadAdapter(clip, join(ORACLE, "clip", run.adapter_init));
  const { betas, eps, weight_decay, max_grad_norm } = run.optimizer;
  const optimiser = adamW(adapter.variables, { betas, eps, weightDecay: weight_decay });
  const { pixels, ids, mask } = inputs();
  const found: number[] = [];
  for (const rate of run.learning_rates) {
    const loss = () => model.loss(model.encodeImage(pixels), model.encodeText(ids, mask));
    const { value, grads } = tf.variableGrads(loss, adapter.variables);
    const list = adapter.variables.map((v) => grads[v.name]);
    found.push((await value.data())[0]);
    optimiser.step(clipGradients(list, (await globalNorm(list).data())[0], max_grad_norm), rate);
    tf.dispose([grads, value]);
  }
  return found;
}

test(
  "the losses of ten LoRA steps in bfloat16 are no farther from PEFT's float32 than PEFT's own autocast is",
  { skip: noReference },
  async (t) => {
    if (!hasNative("linear")) return t.skip("the packed product needs a processor with bfloat16 instructions");
    const { cases, folder } = openOracle(ORACLE, "clip");
    for (const run of cases.lora.filter((one: { use_dora: boolean }) => !one.use_dora)) {
      const { betas, eps, weight_decay: weightDecay, max_grad_norm: maxNorm } = run.optimizer;
      const job = { kind: "lora", model: MODEL, adapter: join(folder, run.adapter_init), arrays: ARRAYS, rates: run.learning_rates };
      const [wide, cast] = reference([false, true].map((bfloat16) => ({ ...job, betas, eps, weightDecay, maxNorm, bfloat16 })));
      assert.ok(farthest(wide, run.losses) < 1e-3, "the same run as the oracle's");
      const [ours, peer] = [farthest(await losses(run), wide), farthest(cast, wide)];
      t.diagnostic(`${run.name}: largest error ${ours.toExponential(1)} (PEFT ${peer.toExponential(1)})`);
      assert.ok(ours <= peer, `${run.name}: largest error of a loss ${ours}, PEFT's autocast ${peer}`);
    }
  },
);
