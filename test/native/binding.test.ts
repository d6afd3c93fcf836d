import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toBfloat16 } from "vitrine/engine/bfloat16";
import { hasNative, nativeBytes, nativeKernels, nativeProcessor } from "vitrine/engine/native";
import { messageOf } from "../support/close";

type Handle = { id: number; shape: number[]; dtype: number };
/** The binding's own functions, without our wrappers. */
type Binding = {
  runKernel(...args: unknown[]): Handle[];
  tensorBytes(...args: unknown[]): Uint8Array;
  tensorFromBytes(...args: unknown[]): Handle;
  addFunction(...args: unknown[]): void;
  createTensor(shape: number[], dtype: number, data: Float32Array): number;
  deleteTensor(id: number): void;
  executeOp(name: string, attributes: object[], inputs: number[], outputs: number): Handle[];
};
const binding = () => (tf.backend() as unknown as { binding: Binding }).binding;
const ROOT = join(__dirname, "..", "..");

before(() => engine().then(() => {}));

/** Runs a program in a process of its own; gives what it printed and how it ended. */
function program(code: string, env: NodeJS.ProcessEnv = {}) {
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, ["-e", code], {
    cwd: ROOT,
    env: { ...process.env, ...env },
    encoding: "utf8",
  });
  return { status, signal, stdout: stdout.trim(), stderr };
}

test("the binding in use is ours: its kernels are known by name, and their processor", () => {
  assert.ok(nativeKernels().size > 0);
  assert.ok(hasNative("layerNorm"));
  assert.equal(hasNative("no such kernel"), false);
  const { level, threads } = nativeProcessor()!;
  assert.match(level, /^(base|avx2|avx512bf16)$/);
  assert.ok(threads >= 1);
});

test("runKernel() refuses what is not a call, and goes on working", async () => {
  const b = binding();
  const x = b.createTensor([2], 1, Float32Array.of(1, 2));
  await messageOf(() => b.runKernel(), "expected 3 arguments, 0 came");
  await messageOf(() => b.runKernel(1, [], []), "the name is not a string");
  await messageOf(() => b.runKernel("no such kernel", [], []), "kernel no such kernel is not there on this processor");
  await messageOf(() => b.runKernel("layerNorm", 7, []), "input ids are not an array");
  await messageOf(() => b.runKernel("layerNorm", ["x"], []), "input ids are not an array of numbers");
  await messageOf(() => b.runKernel("layerNorm", [1.5], []), "not a whole number");
  await messageOf(() => b.runKernel("layerNorm", [Number.NaN], []), "not a whole number");
  await messageOf(() => b.runKernel("layerNorm", [2 ** 40], []), "not a whole number");
  await messageOf(() => b.runKernel("layerNorm", [2 ** 31 - 1], []), "no tensor has the id 2147483647");
  await messageOf(() => b.runKernel("layerNorm", [-2], []), "no tensor has the id -2");
  await messageOf(() => b.runKernel("layerNorm", [x], [{}]), "parameters are not an array of numbers");
  await messageOf(() => b.runKernel("layerNorm", [], []), "kernel layerNorm: input 0 is missing");
  b.deleteTensor(x);
  await messageOf(() => b.runKernel("layerNorm", [x], []), `no tensor has the id ${x}`);
});

test("tensorFromBytes() and tensorBytes() carry any dtype both ways", async () => {
  const b = binding();
  const bytes = Uint8Array.from({ length: 12 }, (_, i) => 250 + i);
  for (const [dtype, shape] of [
    [1, [3]],
    [14, [2, 3]],
    [3, [1, 3]],
    [4, [12]],
    [6, [3, 4]],
  ] as const) {
    // biome-ignore format: one line
    const handle = b.tensorFromBytes(dtype, shape, bytes);
    assert.deepEqual([handle.dtype, handle.shape], [dtype, shape]);
    assert.deepEqual(b.tensorBytes(handle.id), bytes);
    b.deleteTensor(handle.id);
  }
  const empty = b.tensorFromBytes(14, [0, 4], new Uint8Array(0));
  assert.equal(b.tensorBytes(empty.id).length, 0);
  b.deleteTensor(empty.id);
  await messageOf(() => b.tensorFromBytes(14, [2, 2], bytes), "12 bytes, expected 8");
  await messageOf(() => b.tensorFromBytes(7, [2], bytes), "dtype 7 of TensorFlow is not taken"); // strings
  await messageOf(() => b.tensorFromBytes(1, [-3], bytes), "impossible shape");
  await messageOf(() => b.tensorFromBytes(1, [2 ** 30, 2 ** 30, 2 ** 30], bytes), "impossible shape");
  await messageOf(() => b.tensorFromBytes(1, [3], new Float32Array(3)), "not a Uint8Array");
  await messageOf(() => b.tensorFromBytes(1, [3], "abc"), "not a Uint8Array");
  await messageOf(() => b.tensorBytes("x"), "the id is not a number");
  await messageOf(() => b.tensorBytes(2 ** 31 - 1), "no tensor has the id");
});

test("nativeBytes() reads a bfloat16 tensor", () =>
  tf.tidy(() => {
    assert.deepEqual([...nativeBytes(toBfloat16(tf.tensor1d([1, -2])))], [0x80, 0x3f, 0x00, 0xc0]);
    assert.deepEqual([...nativeBytes(tf.tensor1d([1], "int32"))], [1, 0, 0, 0]);
  }));

/** One field of a protocol buffer: bytes, a text or a number. */
const field = (number: number, value: Uint8Array | string | number): number[] => {
  if (typeof value === "number") return [number << 3, value];
  const bytes = typeof value === "string" ? new TextEncoder().encode(value) : value;
  return [(number << 3) | 2, bytes.length, ...bytes];
};
const message = (...fields: number[][]) => Uint8Array.from(fields.flat());

test("addFunction() adds a function that executeOp runs by its name", async () => {
  // FunctionDef { signature: OpDef { name, input_arg { name, type: DT_FLOAT }, output_arg }, ret { y: x } }
  const arg = (name: string) => message(field(1, name), field(3, 1));
  const signature = message(field(1, "VitrineSame"), field(2, arg("x")), field(3, arg("y")));
  const b = binding();
  b.addFunction(message(field(1, signature), field(4, message(field(1, "y"), field(2, "x")))));
  const x = b.createTensor([2], 1, Float32Array.of(3, 4));
  const [y] = b.executeOp("VitrineSame", [], [x], 1);
  assert.deepEqual([...new Float32Array(b.tensorBytes(y!.id).buffer)], [3, 4]);
  for (const id of [x, y!.id]) b.deleteTensor(id);
  await messageOf(() => b.addFunction(Uint8Array.of(255, 255, 255)), /./);
  await messageOf(() => b.addFunction("text"), "not a Uint8Array");
});

test("code beyond the architecture's baseline stands in kernels only, so that loading runs on every processor", (t) => {
  if (process.arch !== "x64") return t.skip(`one level only on ${process.arch}`);
  const file = join(ROOT, "node_modules/@tensorflow/tfjs-node-gpu/lib/napi-v8/tfjs_binding.node");
  const { stdout, error } = spawnSync("objdump", ["-d", "--no-show-raw-insn", file], { encoding: "utf8", maxBuffer: 1 << 28 });
  if (error) return t.skip("objdump is not installed");
  // Functions that hold AVX instructions (their names begin with v). Kernels' names carry the anonymous namespace.
  const wide = new Set<string>();
  let name = "";
  for (const line of stdout.split("\n")) {
    const label = /^[0-9a-f]+ <(.*)>:$/.exec(line);
    if (label) name = label[1]!;
    else if (/^ +[0-9a-f]+:\tv[a-z]/.test(line)) wide.add(name);
  }
  assert.ok(wide.size > 10, "the binding has AVX code");
  assert.deepEqual(
    [...wide].filter((symbol) => !symbol.includes("_GLOBAL__N_1") || /registerOnLine|^_GLOBAL__sub_I/.test(symbol)),
    [],
  );
});

const LAYER_NORM = `
const { tf, engine } = require("vitrine/engine"), native = require("vitrine/engine/native");
engine().then(() => {
  const x = tf.range(0, 3 * 37).reshape([3, 37]).sin();
  const [y] = native.runNative("layerNorm", [x, tf.ones([37]), tf.zeros([37])], [1e-5, 1, 0]);
  console.log(JSON.stringify({ level: native.nativeProcessor().level, linear: native.hasNative("linear"), y: [...y.dataSync()] }));
});`;

test("every level that this processor has runs, and gives the same answer", () => {
  const names = ["base", "avx2", "avx512bf16"];
  const here = names.indexOf(nativeProcessor()!.level);
  const results = names.slice(0, here + 1).map((VITRINE_LEVEL) => {
    const { status, stdout, stderr } = program(LAYER_NORM, { VITRINE_LEVEL });
    assert.equal(status, 0, stderr);
    return JSON.parse(stdout) as { level: string; linear: boolean; y: number[] };
  });
  for (const [i, { level, linear, y }] of results.entries()) {
    assert.equal(level, names[i]);
    assert.equal(linear, level === "avx512bf16"); // what needs bfloat16 instructions is not there below
    y.forEach((value, k) => assert.ok(Math.abs(value - results[0]!.y[k]!) < 1e-5, `${level}, number ${k}`));
  }
});

test("a level that the processor lacks, and threads that make no sense, are errors and no crash", () => {
  const code = `require("vitrine/engine").engine().then(() => console.log(JSON.stringify(require("vitrine/engine/native").nativeProcessor())))
    .catch((error) => { console.log(error.message); process.exit(3); });`;
  const level = program(code, { VITRINE_LEVEL: "avx9" });
  assert.deepEqual([level.status, level.signal], [3, null]);
  assert.match(level.stdout, /VITRINE_LEVEL is "avx9"; this processor has base to/);
  const threads = program(code, { VITRINE_THREADS: "many" });
  assert.deepEqual([threads.status, threads.signal], [3, null]);
  assert.match(threads.stdout, /VITRINE_THREADS is "many"; expected a whole number from 1 to 256/);
});

test("on another backend there are no kernels, and asking for one says so", () => {
  const { status, stdout } = program(
    `const { engine } = require("vitrine/engine"), native = require("vitrine/engine/native");
     engine().then(() => { console.log(native.nativeKernels().size, native.nativeProcessor()); native.runNative("linear", []); }).catch((error) => console.log(error.message));`,
    { VITRINE_BACKEND: "cpu" },
  );
  assert.equal(status, 0);
  assert.match(stdout, /^0 undefined\nkernel linear: no native kernels here \(backend cpu\)/);
});

test("the binding stays in memory when the worker that was its only user ends: threads of the pool are still in it", (t) => {
  if (process.platform !== "linux") return t.skip("reads /proc/self/maps");
  const { status, signal, stdout } = program(
    `const { Worker } = require("node:worker_threads");
     const loaded = () => require("node:fs").readFileSync("/proc/self/maps", "utf8").includes("tfjs_binding.node");
     const work = 'const { tf, engine } = require("vitrine/engine"), native = require("vitrine/engine/native");' +
       'engine().then(() => native.runNative("layerNorm", [tf.ones([4096, 64]), tf.ones([64]), tf.zeros([64])], [1e-5, 1, 0]))';
     const before = loaded();
     new Worker(work, { eval: true }).on("exit", () => setTimeout(() => console.log(before, loaded()), 100));`,
  );
  assert.deepEqual([status, signal, stdout], [0, null, "false true"]);
});

test("what start-up touched of TensorFlow's libraries is given back", { skip: process.platform !== "linux" }, () => {
  const code = `require("vitrine/engine").engine().then(() => {
    const { maxRSS } = process.resourceUsage();
    console.log((maxRSS * 1024 - process.memoryUsage.rss()) / 2 ** 20);
  });`;
  const { stdout, stderr } = program(code, { VITRINE_BACKEND: "tensorflow" });
  assert.ok(Number(stdout) > 150, `${stdout} MB less than at the peak\n${stderr}`);
});
