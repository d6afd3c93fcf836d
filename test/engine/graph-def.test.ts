import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { functionDef, type Node, outputName, readOpList } from "vitrine/engine/graph-def";
import type { NodeBackend } from "vitrine/engine/node-backend";
import { messageOf } from "../support/close";

before(() => engine().then(() => {}));

const binding = () => (tf.backend() as unknown as NodeBackend).binding;
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

test("functionDef() writes the bytes of the protocol buffer", () => {
  // Spelled out by hand from the .proto files and the encoding's description.
  const identity = functionDef({
    name: "f",
    arguments: [{ name: "x", dtype: 1 }],
    nodes: [],
    results: [{ name: "y", dtype: 1, from: "x" }],
  });
  assert.equal(hex(identity), ["0a11", "0a0166", "12050a01781801", "1a050a01791801", "2206", "0a0179", "120178"].join(""));
  const node: Node = { name: "n", op: "A", inputs: ["x"], attributes: [{ name: "k", type: 1, value: -1 }] };
  const one = functionDef({ name: "f", arguments: [], nodes: [node], results: [], xla: true });
  assert.equal(
    hex(one),
    ["0a03", "0a0166", "1a1b", "0a016e", "120141", "1a0178", "2a10", "0a016b", "120b", "18ffffffffffffffffff01", "2a15", "0a0f", hex(Buffer.from("_XlaMustCompile")), "12022801"] // biome-ignore format: one field a text
      .join(""),
  );
});

/** Runs a function of one node without inputs, and gives what it returns. */
function run(title: string, node: Omit<Node, "name">, output: string, dtype: number): Uint8Array {
  const b = binding();
  b.addFunction!(
    functionDef({ name: title, arguments: [], nodes: [{ name: "n", ...node }], results: [{ name: "y", dtype, from: `n:${output}:0` }] }),
  );
  const [y] = b.executeOp(title, [], [], 1);
  b.removeFunction(title);
  const bytes = b.tensorBytes(y!.id);
  (b as unknown as { deleteTensor(id: number): void }).deleteTensor(y!.id);
  return bytes;
}

test("functionDef() carries constants of every shape and dtype", () => {
  const values = Float32Array.of(1.5, -2, 3e38, Number.NaN, 0, -0);
  for (const shape of [[6], [2, 3], [1, 1, 6]]) {
    const constant = { dtype: 1, shape, bytes: new Uint8Array(values.buffer) };
    assert.deepEqual(run("VitrineConstant", { op: "Const", inputs: [], attributes: [], constant }, "output", 1), constant.bytes);
  }
  const scalar = { dtype: 3, shape: [], bytes: new Uint8Array(Int32Array.of(-7).buffer) };
  assert.deepEqual(run("VitrineConstant", { op: "Const", inputs: [], attributes: [], constant: scalar }, "output", 3), scalar.bytes);
  const empty = { dtype: 1, shape: [0, 3], bytes: new Uint8Array(0) };
  assert.deepEqual(run("VitrineConstant", { op: "Const", inputs: [], attributes: [], constant: empty }, "output", 1), empty.bytes);
});

test("functionDef() writes attributes of every kind, and refuses another by name", async () => {
  const attributes = [
    { name: "text", type: 0, value: "SAME" },
    { name: "texts", type: 0, value: ["a", "b"] },
    { name: "whole", type: 1, value: 300 },
    { name: "wholes", type: 1, value: [1, 2] },
    { name: "real", type: 2, value: 0.5 },
    { name: "on", type: 3, value: true },
    { name: "dtype", type: 4, value: 14 },
    { name: "shape", type: 5, value: [2, 300] },
  ];
  const write = (list: Node["attributes"]) => functionDef({ name: "f", arguments: [], nodes: [{ name: "n", op: "A", inputs: [], attributes: list }], results: [] }); // biome-ignore format: one line
  const value = (i: number) => hex(write([{ ...attributes[i]!, name: "k" }])).slice(hex(write([])).length + 8 + 2);
  assert.deepEqual(
    attributes.map((_, i) => value(i).slice(4)),
    ["120453414d45", "0a06120161120162", "18ac02", "0a0418011802", "250000003f", "2801", "300e", "3a09120208021203" + "08ac02"],
  );
  await messageOf(() => write([{ name: "k", type: 8, value: "f" }]), "attribute k is of type 8");
});

test("readOpList() knows TensorFlow's ops, their outputs and which keep a state", async () => {
  const ops = readOpList(binding().opDefinitions());
  assert.ok(ops.size > 1000);
  const names = (op: string) => ops.get(op)!.outputs.map(({ name }) => name);
  assert.deepEqual([names("MatMul"), names("Softmax"), names("TopKV2")], [["product"], ["softmax"], ["values", "indices"]]);
  assert.deepEqual(
    ["MatMul", "RandomUniform", "VarHandleOp"].map((op) => ops.get(op)!.stateful),
    [false, true, true],
  );
  const count = [{ name: "num", type: 1, value: 3 }];
  assert.equal(outputName("n", ops.get("Unpack")!, count, 2), "n:output:2");
  assert.equal(outputName("n", ops.get("TopKV2")!, [], 1), "n:indices:0");
  await messageOf(() => outputName("n", ops.get("Unpack")!, count, 3), "node n has no output 3");
});
