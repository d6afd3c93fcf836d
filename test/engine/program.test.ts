import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { hasNative, nativeBackend, runNative, watchNative } from "vitrine/engine/native";
import { makeProgram } from "vitrine/engine/program";
import { expectSame, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const native = (name: string, body: () => unknown) =>
  test(name, async (t) => {
    if (!hasNative("layerNorm")) return t.skip("native kernels are not in use here");
    await body();
  });

const rows = (...values: number[]) => tf.tensor(values, [1, values.length]);

/** silu(scaled + x) of a norm: three kernels, the second with a number that changes. */
function recorded(weight: tf.Tensor, x: tf.Tensor) {
  return watchNative(() => {
    const [normal] = runNative("rmsNorm", [x, weight], [1e-6, 1]);
    const [same] = runNative("layerNorm", [normal, weight, undefined, x], [0.5, 1]);
    return runNative("activation", [same, undefined], [3, 1])[0];
  });
}

native("a program gives what its calls give one by one, with other inputs and numbers, and leaves one tensor", async () => {
  const weight = rows(1, 2, 3, 4).squeeze([0]);
  const first = rows(1, -2, 3, 0.5);
  const { calls, result } = recorded(weight, first);
  assert.deepEqual(
    calls.map(({ name }) => name),
    ["rmsNorm", "layerNorm", "activation"],
  );
  const program = makeProgram(calls, [first], [weight], [{ call: 1, number: 0, base: 0 }])!;
  const again = program([first], 0.5);
  expectSame(again.dataSync(), result.dataSync());
  const other = rows(-1, 0, 7, 2);
  await keepsTensorCount(() => {
    const y = program([other], 0.5);
    const { result: want, calls: made } = recorded(weight, other);
    expectSame(y.dataSync(), want.dataSync());
    tf.dispose([y, ...made.flatMap(({ outputs }) => outputs)]);
  });
  assert.notDeepEqual(program([other], 2).dataSync(), program([other], 0.5).dataSync(), "the number that varies");
});

native("what was not made of open inputs and constants, or is a variable, is no program", () => {
  const [weight, x] = [rows(1, 2).squeeze([0]), rows(3, 4)];
  const { calls } = recorded(weight, x);
  assert.equal(makeProgram(calls, [x], [], []), undefined, "the weight is neither open nor constant");
  const variable = tf.variable(weight);
  assert.equal(
    makeProgram(recorded(variable, x).calls, [x], [variable], []),
    undefined,
    "a variable gets other memory when it is assigned",
  );
  assert.equal(makeProgram([], [x], [weight], []), undefined);
});

native("runProgram names what is wrong with its code", async () => {
  const { binding } = nativeBackend()!;
  const run = (names: unknown, code: unknown) => () => binding.runProgram(names as string[], code as Float64Array);
  await messageOf(run(["rmsNorm"], [1]), "the code is not a Float64Array");
  await messageOf(run(["rmsNorm"], Float64Array.of(3)), "the code holds an impossible count");
  await messageOf(run(["rmsNorm"], Float64Array.of(1, -2, 0)), "an input is not made yet");
  await messageOf(run(["rmsNorm"], Float64Array.of(1, -1, 0)), "kernel rmsNorm: input 0 is missing");
  await messageOf(run(["nothing"], Float64Array.of(0, 0)), "kernel nothing is not there");
  await messageOf(run(["rmsNorm"], Float64Array.of(1, 0.5, 0)), "not whole");
});
