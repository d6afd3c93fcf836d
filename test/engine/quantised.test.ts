import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { isBfloat16, toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import { frozenWeight } from "vitrine/engine/frozen";
import {
  dequantise,
  formatOf,
  isQuantised,
  QUANTISED,
  quantise,
  quantisedBytes,
  quantisedTensor,
  quantiseRows,
} from "vitrine/engine/quantised";
import { dynamicMap, FORMATS, LEVELS, layoutOf } from "vitrine/engine/quantised-format";
import { type Clip, load } from "vitrine/models";
import { headCrossEntropy } from "vitrine/nn/cross-entropy";
import { mergeLora, withLora } from "vitrine/nn/lora";
import { linearProduct } from "vitrine/nn/ops";
import type { TensorSource } from "vitrine/files/safetensors";
import { disposeParams, leaves, loadWeights, weight, weightValues } from "vitrine/nn/spec";
import { withTrainable } from "vitrine/nn/trainable";
import { freshFolder, inputs, logits, lossOf, MODEL } from "../support/clip";
import { cosine, expectClose, expectSame, farthest, keepsTensorCount, messageOf } from "../support/close";
import { stir } from "../support/lora";
import { noise, numbers } from "../native/support";

before(() => engine().then(() => {}));

const sizeOf = (shape: number[]) => shape.reduce((a, b) => a * b, 1);

for (const dtype of QUANTISED) {
  test(`an ${dtype} weight says its dtype and shape, and tf.memory() counts the bytes that it takes`, () => {
    const before = tf.memory();
    const count = () => [tf.memory().numTensors - before.numTensors, tf.memory().numBytes - before.numBytes];
    const x = quantise(
      tf.tidy(() => tf.keep(noise(128, 192) as tf.Tensor2D)),
      dtype,
    );
    const [source] = [count()[1]! - layoutOf(formatOf(x)!, [128, 192]).bytes];
    assert.equal(source, 4 * 128 * 192, "beside the weight that it was made from");
    assert.deepEqual([x.dtype, x.shape, isQuantised(x), formatOf(x)], [dtype, [128, 192], true, dtype === "nf4" ? "nf4-double" : "int8"]);
    const bits = (8 * layoutOf(formatOf(x)!, [4096, 4096]).bytes) / 4096 ** 2;
    assert.ok(dtype === "int8" ? bits === 8.25 : bits > 4.1 && bits < 4.14, `${bits} bits a number`);
    x.dispose();
    assert.equal(count()[1], source);
    assert.ok(x.isDisposed && !isQuantised(noise(1)));
  });

  test(`clone, keep, tidy and dispose treat an ${dtype} weight as any tensor`, () => {
    const before = tf.memory();
    const [kept, result] = tf.tidy(() => {
      const x = quantise(noise(7, 70) as tf.Tensor2D, dtype);
      return [tf.keep(x.clone()), x.clone()] as tf.Tensor2D[];
    });
    const read = (x: tf.Tensor) => tf.tidy(() => numbers(x));
    assert.equal(kept!.dtype, dtype);
    const values = read(kept!);
    expectSame(read(result!), values);
    result!.dispose();
    expectSame(read(kept!), values, "the other clone lives on");
    kept!.dispose();
    assert.deepEqual([tf.memory().numTensors, tf.memory().numBytes], [before.numTensors, before.numBytes]);
  });

  test(`a stock op on an ${dtype} weight, and reading one, are errors that say what to do`, async () => {
    const x = quantise(noise(2, 2) as tf.Tensor2D, dtype);
    const other = noise(2, 2) as tf.Tensor2D;
    const stock: (() => unknown)[] = [
      () => tf.relu(x),
      () => tf.sum(x),
      () => tf.transpose(x),
      () => tf.reshape(x, [4]),
      () => tf.slice(x, [0, 0], [1, 2]),
      () => tf.concat([x, other]),
      () => tf.gather(x, tf.tensor1d([0], "int32")),
      () => tf.cast(x, "float32"),
    ];
    const scope = tf.engine().startScope();
    for (const op of stock) await messageOf(op, `a ${dtype} weight [2,2] is no input of a stock op; multiply with linearProduct`);
    assert.throws(() => tf.add(x, other)); // tfjs itself refuses to bring the dtypes together
    assert.throws(() => x.mul(2));
    assert.throws(() => tf.matMul(other, x));
    tf.engine().endScope(scope as never);
    for (const read of [() => x.dataSync(), () => x.data(), () => x.arraySync(), () => x.array(), () => x.toString()])
      await messageOf(read, "widen it first with toFloat32");
    tf.dispose([x, other]);
  });

  test(`linearProduct() with an ${dtype} weight: forward, and gradients to x and bias, as with the weight that it stands for`, () =>
    tf.tidy(() => {
      for (const shape of [
        [3, 70],
        [2, 9, 70],
        [0, 70],
      ]) {
        const [x, weight, bias] = [noise(...shape), quantise(noise(33, 70) as tf.Tensor2D, dtype), noise(33) as tf.Tensor1D];
        const wide = toFloat32(weight);
        const y = linearProduct(x, weight, bias);
        const few = sizeOf(shape) / 70 <= 8;
        expectClose(numbers(y), numbers(linearProduct(x, wide, bias)), few ? 2e-5 : 0.06, `forward of [${shape}]`);
        if (!sizeOf(shape)) continue;
        const dy = noise(...shape.slice(0, -1), 33);
        const [dx, db] = tf.grads((x, bias) => linearProduct(x, weight, bias as tf.Tensor1D))([x, bias], dy);
        const [wantX, wantB] = tf.grads((x, bias) => linearProduct(x, wide, bias as tf.Tensor1D))([x, bias], dy);
        expectClose(numbers(dx!), numbers(wantX!), 0.04, "dx");
        expectClose(numbers(db!), numbers(wantB!), 1e-5, "dbias");
      }
    }));

  test(`headCrossEntropy() with an ${dtype} head is that of the weight that it stands for, its gradient too`, async () => {
    await keepsTensorCount(() =>
      tf.tidy(() => {
        const [hidden, head] = [noise(5, 70), quantise(noise(33, 70) as tf.Tensor2D, dtype)];
        const labels = tf.tensor1d([0, 32, -100, 7, 12], "int32");
        const loss = (weight: tf.Tensor2D) => tf.valueAndGrad((x: tf.Tensor) => headCrossEntropy(x, weight, labels))(hidden);
        const [ours, theirs] = [loss(head), loss(toFloat32(head))];
        expectClose(numbers(ours.value), numbers(theirs.value), 0.02);
        expectClose(numbers(ours.grad), numbers(theirs.grad), 0.01);
      }),
    );
  });

  test(`linearProduct() refuses to train an ${dtype} weight, and one that does not fit`, () =>
    tf.tidy(() => {
      const weight = quantise(noise(3, 4) as tf.Tensor2D, dtype);
      assert.throws(() => tf.grads((x, w) => linearProduct(x, w as tf.Tensor2D))([noise(2, 4), weight]), /frozen; load with/);
      assert.throws(() => linearProduct(noise(2, 5), weight), /does not fit weight \[3, 4\]/);
    }));

  test(`quantise() takes bfloat16 weights, packed or not, and quantisedTensor() gives the bytes back`, async () => {
    await keepsTensorCount(() => {
      const weight = noise(66, 130) as tf.Tensor2D;
      const [half, packed] = [toBfloat16(weight), frozenWeight(weight)];
      const [a, b] = [quantise(half, dtype), quantise(packed, dtype)];
      assert.deepEqual(quantisedBytes(a), quantisedBytes(b));
      const again = quantisedTensor(quantisedBytes(a), formatOf(a)!, [66, 130]);
      assert.deepEqual(quantisedBytes(again), quantisedBytes(a));
      expectSame(
        tf.tidy(() => numbers(again)),
        tf.tidy(() => numbers(a)),
      );
      tf.dispose([weight, half, a, b, again]);
      packed.dispose();
    });
  });

  test(`load(…, { dtype: "${dtype}" }) quantises the weights of linear layers, tables and patches stay bfloat16, the rest float32`, async () => {
    const before = tf.memory();
    const clip = await load(MODEL, { dtype });
    let bytes = 0;
    for (const { spec, path } of leaves(clip.spec)) {
      const x = path.reduce<unknown>((node, key) => (node as Record<string | number, unknown>)[key], clip.params) as tf.Tensor;
      const wanted = spec.product && !spec.view ? dtype : spec.matrix ? "bfloat16" : "float32";
      assert.equal(x.dtype, wanted, spec.name);
      const packed = spec.view && isBfloat16(x); // filled up to whole panels
      bytes += isQuantised(x)
        ? layoutOf(formatOf(x)!, x.shape as [number, number]).bytes
        : packed
          ? 0
          : sizeOf(spec.shape) * (spec.matrix ? 2 : 4);
      if (packed) bytes += 2 * x.size;
    }
    assert.equal(tf.memory().numBytes - before.numBytes, bytes);
    assert.equal(clip.dtype, dtype);
    clip.dispose();
    assert.deepEqual([tf.memory().numTensors, tf.memory().numBytes], [before.numTensors, before.numBytes]);
  });
}

/** Random weights of width 128: whole groups, as in real models. */
const folder = freshFolder((config) => {
  for (const tower of [config.text_config, config.vision_config])
    Object.assign(tower, { hidden_size: 128, intermediate_size: 256, num_attention_heads: 4 });
});

/** The model with every weight as the float32 numbers that the quantised one stands for. */
async function widened(quantised: Clip): Promise<Clip> {
  const wide = await load(await folder);
  const values = new Map<string, Float32Array>();
  for await (const one of weightValues(quantised.spec, quantised.params)) values.set(one.name, one.values);
  for (const { spec, path } of leaves(wide.spec)) {
    const parent = path.slice(0, -1).reduce<unknown>((node, key) => (node as Record<string | number, unknown>)[key], wide.params);
    const key = path[path.length - 1]!;
    const old = (parent as Record<string | number, tf.Tensor>)[key]!;
    (parent as Record<string | number, tf.Tensor>)[key] = tf.keep(tf.tensor(values.get(spec.name)!, old.shape));
    old.dispose();
  }
  return wide;
}

for (const dtype of QUANTISED)
  test(`CLIP in ${dtype} computes what the float32 model of its weights does, adapters' gradients too (QLoRA)`, async () => {
    const x = inputs();
    const clip = await load(await folder, { dtype });
    const wide = await widened(clip);
    const embed = (model: Clip) => tf.tidy(() => model.encodeImage(x.pixels).dataSync());
    assert.ok(cosine(embed(clip), embed(wide)) > 0.999);
    const [ours, theirs] = [clip, wide].map((model) => {
      const { model: adapted, adapter } = withLora(model, { targetModules: "all-linear", r: 4, seed: 3 });
      stir(adapter);
      const { value, grads } = tf.variableGrads(() => lossOf(adapted, x), adapter.variables);
      const gradients = adapter.variables.map((v) => numbers(grads[v.name]!));
      const loss = value.dataSync()[0]!;
      tf.dispose([value, grads]);
      adapter.dispose();
      return { loss, gradients };
    });
    assert.ok(Math.abs(ours!.loss - theirs!.loss) < 0.02 * Math.abs(theirs!.loss), `${ours!.loss} and ${theirs!.loss}`);
    const flat = (lists: Float32Array[]) => Float32Array.from(lists.flatMap((list) => [...list]));
    const share = cosine(flat(ours!.gradients), flat(theirs!.gradients));
    assert.ok(share > 0.998, `cosine of all gradients ${share}`);
    clip.dispose();
    wide.dispose();
  });

test("mergeLora() of a quantised model gives bfloat16 weights that say what the adapter does; withTrainable() refuses one", async () => {
  const x = inputs();
  const clip = await load(await folder, { dtype: "nf4" });
  const { model, adapter } = withLora(clip, { targetModules: ["q_proj"], r: 4 });
  stir(adapter);
  await keepsTensorCount(() => {
    const { model: merged, disposeMerged } = mergeLora(model);
    const { q, k } = merged.params.vision.blocks[0]!.attn;
    assert.ok(isBfloat16(q.weight) && k.weight.dtype === ("nf4" as string), "what has no adapter is shared");
    expectClose(logits(merged, x), logits(model, x), 0.1);
    assert.ok(farthest(logits(merged, x), logits(clip, x)) > 0.01);
    disposeMerged();
  });
  await messageOf(() => withTrainable(clip), /is kept in (nf4|bfloat16), which is frozen/);
  adapter.dispose();
  clip.dispose();
});

test("quantiseRows() frees what its slices make, and a wrong dtype or length is an error", async () => {
  await keepsTensorCount(() => {
    const x = quantiseRows([130, 5], "nf4", (_first, count) => toBfloat16(tf.ones([count, 5])), { rows: 64 });
    assert.ok(tf.tidy(() => numbers(x)).every((value) => Math.abs(value - 1) < 1e-6));
    x.dispose();
  });
  await messageOf(() => quantise(tf.ones([1, 1]), "int4" as never), 'dtype is "int4", expected int8 or nf4');
  await messageOf(() => quantisedTensor(new Uint8Array(3), "nf4", [1, 4]), "3 bytes for nf4 [1,4], expected 128");
  await messageOf(() => dequantise(tf.ones([1, 1])), "the weight is float32 [1,1], expected one made by quantise()");
});

test("loadWeights() reads a large weight in slices", async () => {
  const [out, inner, rows] = [150, 131072, 64]; // 8 million numbers are 64 rows
  const slices: number[] = [];
  const source: TensorSource = {
    ...{ name: "w", dtype: "BF16", shape: [out, inner], byteLength: 2 * out * inner, file: "x" },
    read: () => assert.fail("all of it was read"),
    part: (begin, end) => {
      slices.push(begin, end);
      return new Uint8Array(end - begin).fill(0x3f); // 0.74609375
    },
  };
  for (const dtype of QUANTISED)
    await keepsTensorCount(() => {
      slices.length = 0;
      const spec = { w: weight("w", [out, inner]) };
      const params = loadWeights(spec, new Map([["w", source]]), { dtype, where: "x" });
      assert.deepEqual(
        slices,
        [0, 64, 64, 128, 128, 150].map((row) => 2 * inner * row),
      );
      const y = tf.tidy(() => linearProduct(tf.ones([1, inner]), params.w).dataSync());
      assert.ok(
        y.every((sum) => Math.abs(sum / inner / 0.74609375 - 1) < 4e-3),
        "half a step of bfloat16, the scale of int8",
      );
      disposeParams(spec, params);
    });
  assert.equal(rows * inner, 2 ** 23);
});

test("the code books are in order, and as long as their codes", () => {
  for (const book of [LEVELS, dynamicMap()]) assert.ok(book.every((value, i) => i === 0 || value > book[i - 1]!));
  assert.deepEqual([LEVELS.length, dynamicMap().length], [16, 256]);
});

/** On the backends without kernels: the same bytes and numbers by the formulas. */
for (const backend of ["cpu", "wasm"])
  test(`the ${backend} backend keeps and multiplies the same quantised weights`, async (t) => {
    if (backend === "wasm") require("@tensorflow/tfjs-backend-wasm");
    const usual = tf.getBackend();
    const values = numbers(noise(70, 130));
    const bytes = (dtype: "int8" | "nf4", double?: boolean) =>
      tf.tidy(() => quantisedBytes(quantise(tf.tensor2d(values, [70, 130]), dtype, { double })));
    const want = [bytes("int8"), bytes("nf4", false), bytes("nf4")];
    const wide = tf.tidy(() => want.map((b, i) => numbers(quantisedTensor(b, FORMATS[i]!, [70, 130]))));
    t.after(() => tf.setBackend(usual));
    assert.ok(await tf.setBackend(backend));
    await keepsTensorCount(() =>
      tf.tidy(() => {
        assert.deepEqual([bytes("int8"), bytes("nf4", false), bytes("nf4")], want);
        for (const [i, format] of FORMATS.entries()) {
          const weight = quantisedTensor(want[i]!, format, [70, 130]);
          expectSame(numbers(weight), wide[i]!, format);
          const sliced = quantiseRows([70, 130], "int8", (first, count) => values.subarray(first * 130, (first + count) * 130), {
            rows: 64,
          });
          assert.deepEqual(quantisedBytes(sliced), want[0]);
          const x = noise(11, 130);
          const [dense, dy] = [tf.tensor2d(wide[i]!, [70, 130]), noise(11, 70)];
          expectClose(numbers(linearProduct(x, weight)), numbers(linearProduct(x, dense)), 1e-5, format);
          const [dx] = tf.grads((x) => linearProduct(x, weight))([x], dy);
          expectClose(numbers(dx!), numbers(tf.matMul(dy as tf.Tensor2D, dense)), 1e-5, `${format}, dx`);
          assert.throws(() => tf.relu(weight), /no input of a stock op/);
          assert.throws(() => weight.dataSync(), /widen it first/);
        }
      }),
    );
  });
