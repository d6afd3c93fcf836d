/** Rotary position embedding against transformers (test/oracle/rope), and by its own laws. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { isBfloat16, toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import { type Rotary, rope, ropeGradient } from "vitrine/nn/rope";
import { rotaryParameters } from "vitrine/nn/rope-scaling";
import { openOracle } from "../parity/check";
import { expectClose, expectSame, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const draw = random(5);
const noise = (...shape: number[]) =>
  tf.tensor3d(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 2 * draw() - 1),
    shape as [number, number, number],
  );
const oracle = openOracle(join(__dirname, "..", "oracle"), "rope");

for (const { name, config, length, attention_factor, heads } of oracle.cases.cases)
  test(`rotaryParameters() and rope() match transformers: ${name}`, () =>
    tf.tidy(() => {
      const { inverseFrequencies, attentionFactor } = rotaryParameters(config, length ?? undefined);
      const array = (key: string) => oracle.array(`${name}.${key}`);
      const want = array("frequencies").values;
      expectClose(
        inverseFrequencies.map((f, i) => f / want[i]),
        want.map(() => 1),
        4e-7,
        "frequencies, relative: some units in the last place of float32",
      );
      expectClose([attentionFactor], [attention_factor], 1e-12);
      // With the oracle's own frequencies: at position 30000 their last digit is already seen.
      const rotary = { inverseFrequencies: tf.tensor1d(want), attentionFactor };
      const positions = tf.tensor2d(Int32Array.from(array("positions").values), [2, 5], "int32");
      const x = tf.tensor3d(array("before").values, array("before").shape as [number, number, number]);
      expectClose(rope(x, positions, rotary, heads).dataSync(), array("after").values, 3e-6, "turned");
    }));

test("rotaryParameters() names what it does not know and everything that a config misses", async () => {
  const config = { head_dim: 16, rope_theta: 1e4 };
  await messageOf(
    () => rotaryParameters({ ...config, rope_scaling: { type: "mrope" } }),
    'rope_type "mrope" is not known; known: default, linear, dynamic, llama3, yarn, longrope',
  );
  await messageOf(
    () => rotaryParameters({ ...config, rope_scaling: { rope_type: "llama3", factor: 8 } }),
    'rope_type "llama3" misses low_freq_factor; high_freq_factor; max_position_embeddings',
  );
  await messageOf(
    () =>
      rotaryParameters({
        ...config,
        max_position_embeddings: 64,
        rope_scaling: { rope_type: "longrope", short_factor: [1], long_factor: [1, 2] },
      }),
    "short_factor of 8 numbers (it has 1); long_factor of 8 numbers (it has 2)",
  );
  await messageOf(() => rotaryParameters({}), "head_dim, or hidden_size and num_attention_heads");
});

test("a config without a base has that of transformers' default", () =>
  expectSame(rotaryParameters({ head_dim: 8 }).inverseFrequencies, rotaryParameters({ head_dim: 8, rope_theta: 1e4 }).inverseFrequencies));

const rotaryOf = (R: number): Rotary => {
  const { inverseFrequencies, attentionFactor } = rotaryParameters({ head_dim: R, rope_theta: 1e4 });
  return { inverseFrequencies: tf.tensor1d(inverseFrequencies), attentionFactor };
};
const at = (...positions: number[]) => tf.tensor2d(positions, [1, positions.length], "int32");

test("rope() at position 0 changes no bit, and products of queries and keys know only their distance", () =>
  tf.tidy(() => {
    const [q, k, rotary] = [noise(1, 1, 64), noise(1, 1, 64), rotaryOf(64)];
    expectSame(rope(q, at(0), rotary, 1).dataSync(), q.dataSync());
    const product = (i: number, j: number) =>
      rope(q, at(i), rotary, 1)
        .mul(rope(k, at(j), rotary, 1))
        .sum()
        .dataSync();
    expectClose(product(3, 10), product(503, 510), 1e-4);
    assert.ok(Math.abs(product(3, 10)[0] - product(3, 11)[0]) > 1e-3);
  }));

test("ropeGradient() turns back, in the dtype it is given; a partial turn leaves the rest of each head", () =>
  tf.tidy(() => {
    const [x, rotary, positions] = [noise(2, 3, 40), rotaryOf(12), at(1, 20, 300)];
    const y = rope(x, positions, rotary, 2);
    expectClose(ropeGradient(y, positions, rotary, 2).dataSync(), x.dataSync(), 1e-6);
    const rest = (z: tf.Tensor) => z.reshape([2, 3, 2, 20]).slice([0, 0, 0, 12]).dataSync();
    expectSame(rest(y), rest(x));
    const half = toBfloat16(x);
    const turned = rope(half, positions, rotary, 2);
    assert.ok(isBfloat16(turned) && isBfloat16(ropeGradient(turned, positions, rotary, 2)));
    expectSame(
      toFloat32(turned).dataSync(),
      toFloat32(toBfloat16(rope(toFloat32(half), positions, rotary, 2))).dataSync(),
      "bfloat16 is the float32 turn, rounded",
    );
  }));

test("rope() names everything that does not fit", async () => {
  await messageOf(
    () => rope(noise(2, 3, 10), tf.tensor2d([1, 2, 3, 4], [1, 4]), rotaryOf(8), 2),
    "rope of x [2,3,10]: 4 frequencies turn 8 numbers, but a head has 5; positions are float32, expected int32; positions are [1,4], expected [2 or 1, 3]",
  );
});
