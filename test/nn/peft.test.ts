/** Adapters and merged models as files: read back by us, and by PEFT and transformers where VITRINE_PEER_PYTHON names a Python that has them. */
import assert from "node:assert/strict";
import { cpSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { tf } from "vitrine/engine";
import { openSafetensors, saveSafetensors, toFloat32 } from "vitrine/files/safetensors";
import { readJson } from "vitrine/files/json";
import { type Clip, load } from "vitrine/models";
import { saveModel } from "vitrine/models/save";
import { type LoraOptions, mergeLora, withLora } from "vitrine/nn/lora";
import { loadAdapter, saveAdapter } from "vitrine/nn/peft";
import { inputs, type Inputs, loadClip, logits, MODEL, modelWith, ORACLE, oracle, scratch } from "../support/clip";
import { expectClose, expectSame, farthest, keepsTensorCount, messageOf } from "../support/close";
import { stir } from "../support/lora";
import { noReference, reference } from "../support/reference";

let clip: Clip;
let x: Inputs;
before(async () => {
  clip = await loadClip();
  x = inputs();
});

const KINDS: { [title: string]: LoraOptions } = {
  LoRA: { targetModules: ["q_proj", "v_proj"], r: 4, loraAlpha: 8, loraDropout: 0.1 },
  rsLoRA: { targetModules: ["k_proj", "fc2", "out_proj"], r: 4, useRslora: true },
  DoRA: { targetModules: ["q_proj", "fc1", "visual_projection"], r: 3, useDora: true },
  "a convolution": { targetModules: "vision_model\\.(.*\\.fc1|embeddings\\.patch_embedding)", r: 2 },
  "DoRA of a convolution": { targetModules: ["patch_embedding", "text_projection"], r: 2, useDora: true },
  "every linear layer": { targetModules: "all-linear", r: 2 },
  "a list with an exclusion": { targetModules: ["q_proj", "k_proj"], excludeModules: ["layers.0.self_attn.q_proj"], r: 2 },
};

type Written = { title: string; folder: string; attached: Float32Array };
let written: Promise<Written[]> | undefined;

/** One saved adapter of each kind, with the logits that it gives here. */
const writeAll = (): Promise<Written[]> => {
  written ??= Promise.all(
    Object.entries(KINDS).map(async ([title, options]) => {
      const { model, adapter } = withLora(clip, options);
      stir(adapter);
      const folder = join(scratch(), "adapter");
      await saveAdapter(model, adapter, folder);
      const attached = logits(model, x);
      adapter.dispose();
      return { title, folder, attached };
    }),
  );
  return written;
};

test("loadAdapter() gives the numbers that saveAdapter() wrote, to the bit, and the same options", async () => {
  for (const { title, folder, attached } of await writeAll()) {
    const { model, adapter } = loadAdapter(clip, folder);
    expectSame(logits(model, x), attached, title);
    const { targetModules: _, seed: __, ...options } = KINDS[title];
    for (const [key, value] of Object.entries(options))
      assert.deepEqual(adapter.options[key as keyof LoraOptions], value, `${title}: ${key}`);
    adapter.dispose();
  }
});

test("saveAdapter() leaves exactly the two files, and replaces them", async () => {
  const [{ folder }] = await writeAll();
  assert.deepEqual(readdirSync(folder).sort(), ["adapter_config.json", "adapter_model.safetensors"]);
  const config = readJson(join(folder, "adapter_config.json"));
  assert.equal(config.peft_type, "LORA");
  assert.deepEqual(config.target_modules, ["q_proj", "v_proj"]);
});

test("PEFT and transformers open what we write, without a complaint and with our logits", { skip: noReference }, async (t) => {
  const arrays = join(ORACLE, "clip", "arrays.safetensors");
  const adapters = (await writeAll()).flatMap(({ title, folder, attached }) =>
    [false, true].map((merge) => ({
      title: `${title}${merge ? ", merged by PEFT" : ""}`,
      ours: attached,
      job: { model: MODEL, adapter: folder, merge },
    })),
  );
  const cases = [...adapters, ...(await writeMerged())];
  const answers = reference(cases.map(({ job }) => ({ kind: "logits", arrays, ...job })));
  for (const [i, { title, ours }] of cases.entries())
    await t.test(title, () => {
      assert.deepEqual(answers[i].warnings, []);
      assert.ok(farthest(ours, logits(clip, x)) > 0.01, "the adapter says something");
      expectClose(ours, answers[i].logits, 1e-4);
    });
});

/** A merged model saved in both dtypes, with the logits that it gives here. */
async function writeMerged() {
  const { model, adapter } = withLora(clip, KINDS.DoRA);
  stir(adapter);
  const { model: merged, disposeMerged } = mergeLora(model);
  const cases = [];
  for (const dtype of ["float32", "bfloat16"] as const) {
    const folder = join(scratch(), "merged");
    await saveModel(merged, folder, { dtype });
    const again = await load(folder);
    const ours = logits(again, x);
    if (dtype === "float32") expectSame(ours, logits(merged, x), "float32 loses nothing");
    cases.push({ title: `merged by us, saved in ${dtype}`, ours, job: { model: folder } });
    again.dispose();
  }
  disposeMerged();
  adapter.dispose();
  return cases;
}

test("saveModel() keeps the config as it is written, numbers with a point too, and says the dtype", async () => {
  const folder = join(scratch(), "saved");
  await saveModel(clip, folder, { dtype: "bfloat16" });
  const [before, after] = [MODEL, folder].map((f) => readFileSync(join(f, "config.json"), "utf8"));
  assert.equal(after, before.replaceAll('"torch_dtype": "float32"', '"torch_dtype": "bfloat16"'));
  assert.notEqual(after, before);
  const silent = modelWith((config) => delete config.torch_dtype);
  const other = await load(silent);
  await saveModel(other, folder);
  assert.deepEqual(readJson(join(folder, "config.json")), { torch_dtype: "float32", ...readJson(join(silent, "config.json")) });
  other.dispose();
});

test("saveModel() refuses a model with an adapter attached, and writes nothing", async () => {
  const { model, adapter } = withLora(clip, KINDS.LoRA);
  const folder = scratch();
  await messageOf(
    () => saveModel(model, folder),
    "an adapter is attached, and would be lost; save it with saveAdapter, or merge it first with mergeLora",
  );
  assert.deepEqual(readdirSync(folder), []);
  adapter.dispose();
});

test("loadAdapter() follows rank_pattern and alpha_pattern, and saveAdapter() writes them again", async () => {
  const { folder } = (await writeAll())[0];
  const key = "vision_model.encoder.layers.2.self_attn.q_proj";
  const edited = adapterWith(folder, {
    config: (c) =>
      Object.assign(c, { rank_pattern: { [key.replaceAll(".", "\\.")]: 2 }, alpha_pattern: { "layers.2.self_attn.q_proj": 5 } }),
    tensors: (all) =>
      all.map((one) => {
        if (one.name === `base_model.model.${key}.lora_A.weight`) return { ...one, shape: [2, 48], values: one.values.slice(0, 96) };
        if (one.name === `base_model.model.${key}.lora_B.weight`) return { ...one, shape: [48, 2], values: one.values.slice(0, 96) };
        return one;
      }),
  });
  const { model, adapter } = loadAdapter(clip, await edited);
  const module = adapter.modules.find((m) => m.name === key)!;
  assert.deepEqual([module.A.shape, module.B.shape, module.scale], [[2, 48], [48, 2], 2.5]);
  assert.deepEqual(new Set(adapter.modules.filter((m) => m !== module).map((m) => m.scale)), new Set([2]));
  const again = join(scratch(), "again");
  await saveAdapter(model, adapter, again);
  const { model: copy, adapter: second } = loadAdapter(clip, again);
  expectSame(logits(copy, x), logits(model, x));
  adapter.dispose();
  second.dispose();
});

test("loadAdapter() refuses another kind of adapter by name", async () => {
  const { folder } = (await writeAll())[0];
  const other = await adapterWith(folder, { config: (c) => Object.assign(c, { peft_type: "IA3" }) });
  await messageOf(() => loadAdapter(clip, other), 'peft_type is "IA3"; only "LORA" can be loaded');
});

test("loadAdapter() lists every option that it does not compute", async () => {
  const { folder } = (await writeAll())[0];
  const asks = {
    bias: "all",
    modules_to_save: ["visual_projection"],
    use_qalora: true,
    lora_bias: true,
    init_lora_weights: "pissa",
    r: 0,
    lora_alpha: "8",
    target_modules: null,
  };
  const edited = await adapterWith(folder, { config: (c) => Object.assign(c, asks) });
  await keepsTensorCount(() =>
    messageOf(
      () => loadAdapter(clip, edited),
      "adapter_config.json cannot be used:",
      ...Object.entries(asks).map(([key, value]) => `${key} is ${JSON.stringify(value)}`),
    ),
  );
  const off = { bias: "none", modules_to_save: [], trainable_token_indices: {}, use_qalora: false, init_lora_weights: "gaussian" };
  const fine = loadAdapter(clip, await adapterWith(folder, { config: (c) => Object.assign(c, off) }));
  fine.adapter.dispose();
});

test("loadAdapter() lists wrong shapes, missing and unknown tensors at once, and makes none", async () => {
  const { folder } = (await writeAll())[0];
  const at = (layer: number, rest: string) => `base_model.model.vision_model.encoder.layers.${layer}.self_attn.${rest}.weight`;
  const edited = await adapterWith(folder, {
    tensors: (all) => [
      ...all
        .filter(({ name }) => name !== at(0, "q_proj.lora_B") && !name.startsWith(at(1, "v_proj.lora_").replace(".weight", "")))
        .map((one) => (one.name === at(2, "q_proj.lora_A") ? { ...one, shape: [8, 24] } : one)),
      { name: "base_model.model.vision_model.encoder.layers.9.self_attn.q_proj.lora_A.weight", shape: [1], values: new Float32Array(1) },
      { name: "vision_model.post_layernorm.weight", shape: [1], values: new Float32Array(1) },
      {
        name: "base_model.model.vision_model.encoder.layers.0.self_attn.v_proj.lora_magnitude_vector",
        shape: [48],
        values: new Float32Array(48),
      },
    ],
  });
  await keepsTensorCount(() =>
    messageOf(
      () => loadAdapter(clip, edited),
      `adapter_model.safetensors does not fit ${MODEL}:`,
      `missing      ${at(0, "q_proj.lora_B")}`,
      /missing +base_model\.model\.vision_model\.encoder\.layers\.1\.self_attn\.v_proj\.lora_A\.weight and lora_B\.weight \(target_modules names it\)/,
      `wrong shape  ${at(2, "q_proj.lora_A")}: file [8,24], model and config [4,48]`,
      "no such layer vision_model.encoder.layers.9.self_attn.q_proj in a clip model",
      "unexpected   vision_model.post_layernorm.weight",
      /unexpected +base_model\.model\.vision_model\.encoder\.layers\.0\.self_attn\.v_proj\.lora_magnitude_vector \(use_dora is not true\)/,
    ),
  );
});

test("loadAdapter() names a magnitude that DoRA lacks, a rank that is not the config's, and an empty file", async () => {
  const [lora] = await writeAll();
  const dora = await adapterWith(lora.folder, { config: (c) => Object.assign(c, { use_dora: true }) });
  await messageOf(() => loadAdapter(clip, dora), /missing +\S+self_attn\.q_proj\.lora_magnitude_vector/);
  const rank = await adapterWith(lora.folder, { config: (c) => Object.assign(c, { r: 8 }) });
  await messageOf(() => loadAdapter(clip, rank), /lora_A\.weight: file \[4,48\], model and config \[8,48\]/);
  const empty = await adapterWith(lora.folder, { tensors: () => [] });
  await messageOf(() => loadAdapter(clip, empty), "it holds no lora_A and lora_B");
});

test("PEFT's own adapters carry the oracle's numbers through our files and back", async () => {
  const { cases, array } = oracle();
  for (const wanted of cases.lora) {
    await keepsTensorCount(async () => {
      const { model, adapter } = loadAdapter(clip, join(ORACLE, "clip", wanted.adapter_trained));
      const { values } = array(wanted.logits_after);
      expectClose(logits(model, x), values, 1e-5 + 1e-4 * Math.max(...values.map(Math.abs)), wanted.name);
      const folder = join(scratch(), "again");
      await saveAdapter(model, adapter, folder);
      const [ours, theirs] = [folder, join(ORACLE, "clip", wanted.adapter_trained)].map((f) =>
        openSafetensors(join(f, "adapter_model.safetensors")),
      );
      assert.deepEqual([...ours.tensors.keys()].sort(), [...theirs.tensors.keys()].sort(), wanted.name);
      for (const [name, source] of theirs.tensors) {
        assert.deepEqual(ours.tensors.get(name)!.shape, source.shape, name);
        expectSame(toFloat32(ours.tensors.get(name)!), toFloat32(source), name);
      }
      ours.close();
      theirs.close();
      adapter.dispose();
    });
  }
});

test("a base model in bfloat16 takes an adapter", async () => {
  const narrow = await load(MODEL, { dtype: "bfloat16" });
  const [{ folder, attached }] = await writeAll();
  const { model, adapter } = loadAdapter(narrow, folder);
  assert.ok(farthest(logits(model, x), attached) < 0.2);
  const { grads } = tf.variableGrads(() => model.loss(model.encodeImage(x.pixels), model.encodeText(x.ids, x.mask)), adapter.variables);
  assert.equal(Object.keys(grads).length, adapter.variables.length, "gradients go through frozen bfloat16 weights");
  tf.dispose(grads);
  adapter.dispose();
  narrow.dispose();
});

type Plain = { name: string; shape: number[]; values: Float32Array };
type Config = { [key: string]: unknown };

/** A copy of an adapter with another config or other tensors. */
async function adapterWith(
  from: string,
  change: { config?: (config: Config) => unknown; tensors?: (all: Plain[]) => Plain[] },
): Promise<string> {
  const folder = join(scratch(), "adapter");
  cpSync(from, folder, { recursive: true });
  if (change.config) {
    const config = JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8"));
    change.config(config);
    writeFileSync(join(folder, "adapter_config.json"), JSON.stringify(config));
  }
  if (change.tensors) {
    const file = openSafetensors(join(from, "adapter_model.safetensors"));
    const all = [...file.tensors.values()].map((source) => ({ name: source.name, shape: source.shape, values: toFloat32(source) }));
    file.close();
    const entries = change
      .tensors(all)
      .map(({ name, shape, values }) => ({ name, shape, dtype: "F32" as const, data: new Uint8Array(values.slice().buffer) }));
    await saveSafetensors(join(folder, "adapter_model.safetensors"), entries);
  }
  return folder;
}
