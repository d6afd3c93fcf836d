import assert from "node:assert/strict";
import { cpSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toFloat32 as widen } from "vitrine/engine/bfloat16";
import { hasNative, nativeBytes, runNative } from "vitrine/engine/native";
import { dequantise, formatOf, quantise, quantisedBytes, quantisedTensor } from "vitrine/engine/quantised";
import { dynamicMap, LEVELS, layoutOf, nf4Bytes, quantiseScales, quantiseValues } from "vitrine/engine/quantised-format";
import { readBitsandbytes } from "vitrine/files/bitsandbytes";
import { readJson } from "vitrine/files/json";
import { fromFloat32, openSafetensors, saveSafetensors, type TensorSource, toFloat32 } from "vitrine/files/safetensors";
import { type Clip, load } from "vitrine/models";
import { linearProduct } from "vitrine/nn/ops";
import { disposeParams, follow, leaves, loadWeights, weight } from "vitrine/nn/spec";
import { inputs, logits, MODEL, scratch } from "../support/clip";
import { expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";

// test/oracle/nf4: weights, their NF4 bytes and the numbers that these stand for, by numpy and checked against bitsandbytes (its README); and a file as
// bitsandbytes itself writes one.
const ORACLE = resolve(__dirname, "..", "oracle", "nf4");
const arrays = openSafetensors(join(ORACLE, "arrays.safetensors")).tensors;
const cases = readJson(join(ORACLE, "cases.json")) as { nf4: { name: string; shape: [number, number]; double: { offset: number } }[] };
const stored = openSafetensors(join(ORACLE, "bnb_serialized", "model.safetensors")).tensors;
const floats = (name: string) => toFloat32(arrays.get(name)!);
const bytes = (name: string) => arrays.get(name)!.read();

before(() => engine().then(() => {}));

for (const [i, { name, shape, double }] of cases.nf4.entries()) {
  const [plain, nested] = [layoutOf("nf4", shape), layoutOf("nf4-double", shape)];
  const values = floats(`m${i}.input`);
  const codes = Math.ceil(values.length / 2);
  const float32 = (from: Uint8Array, begin: number, count: number) => new Float32Array(from.buffer, from.byteOffset + begin, count);

  test(`${name} [${shape}] in NF4: bitsandbytes' bytes, scales and numbers, by kernel and by formula`, () =>
    tf.tidy(() => {
      const made = quantise(tf.tensor2d(values, shape), "nf4", { double: false });
      for (const got of [quantisedBytes(made), quantiseValues(values, shape, "nf4")]) {
        assert.deepEqual(got.subarray(0, codes), bytes(`m${i}.packed`));
        expectSame(float32(got, plain.scales, plain.groups), floats(`m${i}.absmax`), "absmax");
      }
      expectSame(dequantise(made).dataSync(), floats(`m${i}.dequantized`));
    }));

  test(`${name} [${shape}] with its scales quantised again: the bytes of bitsandbytes' own file, and the oracle's numbers`, () =>
    tf.tidy(() => {
      const { bytes: want, format } = readBitsandbytes(stored).get(`layer${i}.weight`)!.nf4!();
      const made = quantise(tf.tensor2d(values, shape), "nf4");
      assert.equal(formatOf(made), format);
      assert.deepEqual(quantisedBytes(made), want);
      assert.deepEqual(quantiseValues(values, shape, "nf4-double"), want);
      assert.equal(float32(want, nested.offset, 1)[0], double.offset);
      // The oracle computes the map another way, 6e-8 apart: with its map, the numbers are the same to the bit.
      const words = tf.tensor1d(new Int32Array(quantiseValues(values, shape, "nf4").buffer), "int32");
      const again = quantiseScales(quantiseValues(values, shape, "nf4"), shape, floats("dynamic_map"));
      assert.deepEqual(again.subarray(nested.scales, nested.scales + nested.groups), bytes(`m${i}.double.absmax`));
      expectSame(float32(again, nested.nested, 1), floats(`m${i}.double.nested_absmax`), "nested absmax");
      expectSame(dequantise(quantisedTensor(again, "nf4-double", shape)).dataSync(), floats(`m${i}.double.dequantized`));
      if (!hasNative("quantiseScales")) return;
      const [kernel] = runNative("quantiseScales", [words, tf.tensor1d(floats("dynamic_map"))], shape);
      assert.deepEqual(nativeBytes(kernel!), again);
    }));
}

test("the code books are bitsandbytes', to the bit", () => {
  expectSame(LEVELS, floats("levels"));
  expectSame(dynamicMap(), toFloat32(stored.get("layer0.weight.nested_quant_map")!));
});

test("readBitsandbytes() gives each group of tensors as one weight: float32 to read, and the file's own bytes", () => {
  const tensors = readBitsandbytes(stored);
  assert.deepEqual([...tensors.keys()].sort(), ["layer0.weight", "layer1.weight", "layer2.weight"]);
  for (const [i, { shape }] of cases.nf4.entries()) {
    const source = tensors.get(`layer${i}.weight`)!;
    assert.deepEqual([source.shape, source.dtype, source.byteLength], [shape, "F32", 4 * shape[0] * shape[1]]);
    expectClose(toFloat32(source), floats(`m${i}.double.dequantized`), 6e-8 * 4, "numbers"); // the two maps differ by 6e-8, times the largest scale
    const { bytes: kept, format } = source.nf4!();
    const layout = layoutOf(format, shape);
    assert.equal(format, "nf4-double");
    const part = (begin: number, name: string) => {
      const want = stored.get(`layer${i}.weight${name}`)!.read();
      assert.deepEqual(kept.subarray(begin, begin + want.length), want, name);
    };
    part(0, "");
    part(layout.scales, ".absmax");
    part(layout.nested, ".nested_absmax");
    part(layout.map, ".nested_quant_map");
    tf.tidy(() =>
      expectSame(dequantise(quantisedTensor(kept, format, shape)).dataSync(), toFloat32(source), "as the file says, to the bit"),
    );
  }
  assert.equal(readBitsandbytes(arrays), arrays, "a checkpoint without any comes back as it is");
});

test("loadWeights() keeps such a file as it is in nf4, and widens it for every other dtype", async () => {
  const spec = cases.nf4.map(({ shape }, i) => weight(`layer${i}.weight`, shape));
  for (const dtype of ["float32", "bfloat16", "int8", "nf4"] as const)
    await keepsTensorCount(() => {
      const params = loadWeights(spec, stored, { dtype, where: "x" });
      for (const [i, x] of params.entries()) {
        assert.equal(x.dtype, dtype);
        const want = toFloat32(readBitsandbytes(stored).get(`layer${i}.weight`)!);
        const got = tf.tidy(() => widen(x).dataSync());
        if (dtype === "float32" || dtype === "nf4") expectSame(got, want, `layer ${i}`);
        else expectClose(got, want, 0.02, `layer ${i} in ${dtype}`);
      }
      disposeParams(spec, params);
    });
});

/** A small file in bitsandbytes' layout. blocks: numbers that share a scale */
function fileOf(
  change: (state: { [key: string]: unknown }, parts: Map<string, TensorSource>) => void = () => {},
  blocks = 64,
  size = [4, 96],
) {
  const count = size[0]! * size[1]!;
  const source = (name: string, dtype: TensorSource["dtype"], data: Uint8Array, shape: number[]): [string, TensorSource] => [
    name,
    { name, dtype, shape, byteLength: data.length, file: "x.safetensors", read: () => data },
  ];
  const scales = Float32Array.from({ length: Math.ceil(count / blocks) }, (_, i) => i + 1);
  const parts = new Map([
    source(
      "fc.weight",
      "U8",
      Uint8Array.from({ length: count / 2 }, (_, i) => (7 * i) % 256),
      [count / 2, 1],
    ),
    source("fc.weight.absmax", "F32", fromFloat32(scales, "F32"), [scales.length]),
    source("fc.weight.quant_map", "F32", fromFloat32(LEVELS, "F32"), [16]),
  ]);
  const state = { quant_type: "nf4", blocksize: blocks, dtype: "bfloat16", shape: size };
  change(state, parts);
  const note = new TextEncoder().encode(JSON.stringify(state));
  const [name, last] = source(`fc.weight.quant_state.bitsandbytes__${state.quant_type}`, "U8", note, [note.length]);
  return parts.set(name, last);
}

test("readBitsandbytes() spreads the scales of larger blocks, without changing a number", () => {
  for (const blocks of [64, 128, 256]) {
    const source = readBitsandbytes(fileOf(undefined, blocks)).get("fc.weight")!;
    const { bytes: kept, format } = source.nf4!();
    assert.equal(format, "nf4");
    tf.tidy(() => expectSame(dequantise(quantisedTensor(kept, format, [4, 96])).dataSync(), toFloat32(source), `blocks of ${blocks}`));
  }
});

test("readBitsandbytes() says of every weight what does not fit", async () => {
  const refused = (change: Parameters<typeof fileOf>[0], ...parts: (string | RegExp)[]) =>
    messageOf(
      () => readBitsandbytes(fileOf(change)),
      "x.safetensors: weights that bitsandbytes stored in 4 bits cannot be read:",
      ...parts,
    );
  await refused((state) => Object.assign(state, { quant_type: "fp4" }), 'fc.weight: stored as "fp4"; only "nf4" is read here');
  await refused((state) => Object.assign(state, { blocksize: 100, shape: [384] }), "blocksize 100", "shape [384], expected [out, in]");
  await refused((state) => Object.assign(state, { shape: [4, 97] }), "fc.weight has 192 bytes, expected 194 for [4,97] in blocks of 64");
  await refused((state) => Object.assign(state, { nested_blocksize: 256, nested_offset: 1 }), /absmax has 24 bytes, expected 6/);
  await refused((state) => Object.assign(state, { nested_blocksize: 256 }), "nested_offset undefined, expected a number");
  await refused((_, parts) => parts.delete("fc.weight.absmax"), "fc.weight.absmax is missing");
  const other = fromFloat32(LEVELS.map((x) => x / 2), "F32"); // biome-ignore format: short
  await refused((_, parts) => parts.get("fc.weight.quant_map")!.read = () => other, "quant_map is not the code book of NF4"); // biome-ignore format: short
});

test("load() opens a folder whose linear layers bitsandbytes has stored", async () => {
  const folder = join(scratch(), "model");
  cpSync(MODEL, folder, { recursive: true });
  const clip: Clip = await load(MODEL, { dtype: "nf4" });
  const text = new TextEncoder();
  const tensors = leaves(clip.spec).flatMap(({ spec, path }) => {
    const x = follow(clip.params, path) as tf.Tensor;
    const whole = {
      name: spec.name,
      dtype: "F32" as const,
      shape: spec.shape,
      data: fromFloat32(
        tf.tidy(() => widen(x).dataSync() as Float32Array),
        "F32",
      ),
    };
    if (!formatOf(x)) return [whole];
    const [kept, layout, size] = [quantisedBytes(x), layoutOf("nf4-double", x.shape as [number, number]), x.size];
    const blocks = Math.ceil(layout.groups / 256);
    const floats = (begin: number, count: number) => kept.slice(begin, begin + 4 * count);
    const offset = new Float32Array(floats(layout.offset, 1).buffer)[0];
    const note = text.encode(
      JSON.stringify({
        quant_type: "nf4",
        blocksize: 64,
        dtype: "float32",
        shape: x.shape,
        nested_blocksize: 256,
        nested_dtype: "float32",
        nested_offset: offset,
      }),
    );
    const part = (end: string, dtype: "U8" | "F32", data: Uint8Array) => ({
      name: spec.name + end,
      dtype,
      shape: [data.length / (dtype === "U8" ? 1 : 4)],
      data,
    });
    return [
      part("", "U8", kept.slice(0, Math.ceil(size / 2))),
      part(".absmax", "U8", kept.slice(layout.scales, layout.scales + layout.groups)),
      part(".quant_map", "F32", fromFloat32(LEVELS, "F32")),
      part(".nested_absmax", "F32", floats(layout.nested, blocks)),
      part(".nested_quant_map", "F32", floats(layout.map, 256)),
      part(".quant_state.bitsandbytes__nf4", "U8", note),
    ];
  });
  await saveSafetensors(join(folder, "model.safetensors"), tensors);
  const config = { ...readJson(join(folder, "config.json")), quantization_config: { load_in_4bit: true, bnb_4bit_quant_type: "nf4" } };
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  const again = await load(folder, { dtype: "nf4" });
  expectSame(logits(again, inputs()), logits(clip, inputs()));
  const wide = await load(folder);
  expectClose(logits(wide, inputs()), logits(clip, inputs()), 0.1);
  for (const model of [clip, again, wide]) model.dispose();
});

test("a Llama with quantised linear layers computes the oracle's logits", () =>
  tf.tidy(() => {
    const { tensors } = openSafetensors(join(ORACLE, "model", "model.safetensors"));
    const [D, H, dh] = [32, 4, 8];
    const of = (name: string) => tf.tensor(toFloat32(tensors.get(`${name}.weight`)!), tensors.get(`${name}.weight`)!.shape);
    const project = (name: string, x: tf.Tensor) => linearProduct(x, quantise(of(name) as tf.Tensor2D, "nf4"));
    const q = dequantise(quantise(of("model.layers.0.self_attn.q_proj") as tf.Tensor2D, "nf4"));
    expectClose(q.dataSync(), floats("qlora.model.layers.0.self_attn.q_proj"), 1e-7, "one of its weights");
    const norm = (name: string, x: tf.Tensor) => x.mul(x.square().mean(-1, true).add(1e-6).rsqrt()).mul(of(name));
    // One sequence at a time and at most 8 tokens a product: these are multiplied in float32, as the oracle's were.
    const inPieces = (name: string, x: tf.Tensor) =>
      tf.concat([project(name, x.slice([0, 0], [6, -1])), project(name, x.slice([6, 0], [6, -1]))]);
    const [N] = [12];
    const angle = tf
      .range(0, N)
      .reshape([N, 1])
      .mul(tf.tensor1d(Array.from({ length: dh / 2 }, (_, i) => 10000 ** ((-2 * i) / dh))));
    const [cos, sin] = [angle.cos(), angle.sin()].map((x) => tf.concat([x, x], 1));
    const rope = (x: tf.Tensor) => {
      const [first, second] = tf.split(x, 2, -1);
      return x.mul(cos!).add(tf.concat([second!.neg(), first!], -1).mul(sin!)); //                [H, N, dh]
    };
    const heads = (x: tf.Tensor) => x.reshape([N, H, dh]).transpose([1, 0, 2]);
    const later = tf
      .range(0, N)
      .reshape([1, N])
      .greater(tf.range(0, N).reshape([N, 1]))
      .cast("float32")
      .mul(-1e30);
    const ids = Int32Array.from(floats("qlora.input_ids"));
    const rows = [0, 1].map((sequence) => {
      let x = tf.gather(of("model.embed_tokens"), tf.tensor1d(ids.subarray(N * sequence, N * (sequence + 1)), "int32")); // [N, D]
      for (const layer of ["model.layers.0", "model.layers.1"]) {
        const h = norm(`${layer}.input_layernorm`, x);
        const [q, k, v] = ["q", "k", "v"].map((p) => heads(inPieces(`${layer}.self_attn.${p}_proj`, h)));
        const pattern = tf.softmax(tf.matMul(rope(q!), rope(k!), false, true).div(Math.sqrt(dh)).add(later)); // [H, N, N]
        const z = tf.matMul(pattern, v!).transpose([1, 0, 2]).reshape([N, D]);
        x = x.add(inPieces(`${layer}.self_attn.o_proj`, z));
        const m = norm(`${layer}.post_attention_layernorm`, x);
        const gate = inPieces(`${layer}.mlp.gate_proj`, m);
        x = x.add(inPieces(`${layer}.mlp.down_proj`, gate.mul(gate.sigmoid()).mul(inPieces(`${layer}.mlp.up_proj`, m))));
      }
      return tf.matMul(norm("model.norm", x) as tf.Tensor2D, of("lm_head") as tf.Tensor2D, false, true);
    });
    const want = floats("qlora.logits");
    expectClose(tf.concat(rows).dataSync(), want, 1e-5 + 1e-4 * Math.max(...want.map(Math.abs)), "logits");
  }));

test("nf4Bytes() puts parts where layoutOf() says", () => {
  const plain = quantiseValues(Float32Array.of(1, -1, 0.5), [1, 3], "nf4");
  assert.deepEqual(nf4Bytes([1, 3], plain.slice(0, 2), Float32Array.of(1)), plain);
});
