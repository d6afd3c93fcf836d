/** TensorFlow's ops alone, as on a GPU or with a stock binding: the same numbers as PyTorch's, and in bfloat16 no farther from float32 than PyTorch is. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { isPacked } from "vitrine/engine/frozen";
import { hasNative, nativeKernels, withoutNative } from "vitrine/engine/native";
import { load } from "vitrine/models";
import { unit } from "vitrine/models/clip";
import type { Dtype } from "vitrine/nn/spec";
import { runOracle } from "../parity/run";
import { inputs, MODEL, ORACLE } from "../support/clip";
import { cosine, farthest } from "../support/close";
import { noReference, reference } from "../support/reference";

process.env.VITRINE_NATIVE = "off";
before(() => engine().then(() => {}));

/** One family for each kind of tower, connector and language model. */
const KINDS = [
  "clip",
  "siglip",
  "flava",
  "blip_vqa",
  "blip2_itm",
  "blip2_t5",
  "llava_next",
  "internvl_hf",
  "internvl_chat_internlm2",
  "ovis2",
];

test("VITRINE_NATIVE=off: engine() says so, hasNative() is false, and no kernel is called while the checks of every kind of family hold", async (t) => {
  const { why } = await engine();
  assert.match(why, /^TensorFlow on the CPU, \d+ threads \(its own ops only: VITRINE_NATIVE=off\)/);
  assert.deepEqual([hasNative("layerNorm"), nativeKernels().size], [false, 0]);
  const backend = tf.backend() as unknown as { binding: object };
  const { binding } = backend;
  backend.binding = Object.create(binding, { runKernel: { value: () => assert.fail("a kernel ran") } });
  try {
    const { checks } = await runOracle(ORACLE, KINDS);
    assert.equal(new Set(checks.map(({ family }) => family)).size, KINDS.length);
    for (const c of checks)
      await t.test(`${c.family}: ${c.check}`, () => assert.ok(c.ok, `worst error ${c.worst}, tolerance ${c.tolerance}`));
  } finally {
    backend.binding = binding;
  }
});

type Embeddings = { images: number[]; texts: number[] };

/** Unit embeddings of the oracle's pictures and texts. */
async function embeddings(dtype: Dtype): Promise<Embeddings> {
  const clip = await load(MODEL, { dtype });
  assert.equal(isPacked(clip.params.vision.blocks[0]!.mlp.fc1.weight), false);
  const { pixels, ids, mask } = inputs();
  const found = tf.tidy(() => ({
    images: [...unit(clip.encodeImage(pixels)).dataSync()],
    texts: [...unit(clip.encodeText(ids, mask)).dataSync()],
  }));
  tf.dispose([pixels, ids, mask]);
  clip.dispose();
  return found;
}

test("VITRINE_NATIVE=off: CLIP in bfloat16 is near CLIP in float32", async () => {
  const [wide, narrow] = [await embeddings("float32"), await embeddings("bfloat16")];
  for (const of of ["images", "texts"] as const) {
    assert.ok(cosine(wide[of], narrow[of]) > 0.9999, `${of}: cosine ${cosine(wide[of], narrow[of])}`);
    assert.notDeepEqual(wide[of], narrow[of]);
  }
});

test("VITRINE_NATIVE=off: CLIP in bfloat16 is no farther from float32 than PyTorch's bfloat16 is", { skip: noReference }, async (t) => {
  const job = { kind: "logits", model: MODEL, arrays: join(ORACLE, "clip", "arrays.safetensors") };
  const [theirsWide, theirs] = reference([job, { ...job, dtype: "bfloat16" }]) as Embeddings[];
  const [wide, narrow] = [await embeddings("float32"), await embeddings("bfloat16")];
  for (const of of ["images", "texts"] as const) {
    const [error, peer] = [farthest(narrow[of], wide[of]), farthest(theirs![of], theirsWide![of])];
    const [angle, peerAngle] = [1 - cosine(narrow[of], wide[of]), 1 - cosine(theirs![of], theirsWide![of])];
    t.diagnostic(`${of}: largest error ${error.toExponential(1)} (PyTorch ${peer.toExponential(1)}), 1 - cosine ${angle.toExponential(1)} (PyTorch ${peerAngle.toExponential(1)})`); // biome-ignore format: one line
    assert.ok(error <= peer, `${of}: largest error ${error}, PyTorch's ${peer}`);
    assert.ok(angle <= peerAngle, `${of}: 1 - cosine ${angle}, PyTorch's ${peerAngle}`);
  }
});

test("withoutNative() switches kernels off for one call, also when that throws", () => {
  const program = `
    const { engine } = require("vitrine/engine"), { hasNative, withoutNative } = require("vitrine/engine/native");
    engine().then(() => {
      const seen = [hasNative("activation"), withoutNative(() => withoutNative(() => hasNative("activation")))];
      try { withoutNative(() => { throw new Error(); }); } catch {}
      console.log(...seen, hasNative("activation"));
    });`;
  assert.equal(child(program, undefined), "true false true");
  assert.equal(withoutNative(() => 5), 5); // biome-ignore format: one line
});

test("another value of VITRINE_NATIVE is an error of engine()", () => {
  const program = `require("vitrine/engine").engine().catch((error) => console.log(error.message));`;
  assert.match(child(program, "no"), /^VITRINE_NATIVE is "no"; expected "off" .*, or unset$/);
});

/** What a program prints in a process of its own. */
function child(program: string, setting: string | undefined): string {
  const env = { ...process.env, VITRINE_NATIVE: setting };
  if (setting === undefined) delete env.VITRINE_NATIVE;
  return spawnSync(process.execPath, ["-e", program], { cwd: join(__dirname, "..", ".."), env, encoding: "utf8" }).stdout.trim();
}
