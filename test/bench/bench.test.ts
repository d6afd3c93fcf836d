import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";

import { join } from "node:path";
import { test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { hasNative } from "vitrine/engine/native";
import { clipConfig } from "vitrine/models/clip";
import { layerNormOp } from "vitrine/nn/ops";
import { answer, lastLine } from "./child";
import { better } from "./limits";
import { parseOptions } from "./options";
import { makeCheckpoints, peerVersions } from "./peer-side";
import { profileTable, startProfile } from "./profile";
import { cells, type Machine, machineLines, median, type Result, reportJson, toRow } from "./report";
import { table } from "../support/table";
import { operations } from "./work";
import { scratch } from "../support/scratch";

const never = new AbortController().signal;

/** What a person would read when these arguments are refused. */
function refusal(...args: string[]): string {
  let text = "";
  assert.throws(() => parseOptions(args, { err: (more) => (text += more), out: (more) => (text += more) }), { name: "CommanderError" });
  return text;
}

test("parseOptions() reads lists and numbers, and fills in the rest", () => {
  const options = parseOptions([
    "--peer",
    "python3",
    "--checkpoints",
    "ckpt",
    "--workloads",
    "load, clip-text,load",
    "--reps",
    "3",
    "--threads",
    "2",
  ]);
  assert.deepEqual(options.workloads, ["load", "clip-text"]);
  assert.deepEqual(options.dtypes, ["float32", "bfloat16", "int8", "nf4"]);
  assert.deepEqual([options.reps, options.rounds, options.threads, options.profile, options.json], [3, 2, 2, false, undefined]);
});

test("parseOptions() names what is wrong with an argument", () => {
  const good = ["--peer", "python3", "--checkpoints", "ckpt"];
  assert.match(refusal("--peer", "python3"), /--checkpoints <folder>' not specified/);
  assert.match(refusal("--checkpoints", "ckpt"), /--peer is missing/);
  assert.match(
    refusal(...good, "--workloads", "clip-image,clip-txt"),
    /"clip-txt" not known; known: clip-image, clip-text, clip-lora, embed-files, load/,
  );
  assert.match(refusal(...good, "--dtypes", "float16"), /"float16" not known; known: float32, bfloat16/);
  assert.match(refusal(...good, "--reps", "0"), /whole number from 1/);
  assert.match(refusal(...good, "--rounds", "1"), /whole number from 2/);
  assert.match(refusal(...good, "--threads", "two"), /whole number from 1/);
  assert.match(refusal(...good, "--thread", "2"), /unknown option '--thread'\n\(Did you mean --threads\?\)/);
  assert.match(refusal(...good, "clip-image"), /too many arguments/);
  assert.match(refusal("--checkpoints", "ckpt", "--profile", "--json", "x.json"), /does not go with --profile/);
  assert.match(refusal("--checkpoints", "ckpt", "--profile", "--onnx", "x"), /--onnx is a comparison/);
  assert.match(refusal(...good, "--device", "tpu"), /'tpu' is invalid. Allowed choices are cpu, gpu/);
  assert.match(refusal(...good, "--device", "gpu", "--onnx", "x"), /--onnx compares on the CPU/);
});

test("parseOptions() lets --profile run without a peer", () => {
  assert.equal(parseOptions(["--checkpoints", "ckpt", "--profile"]).peer, undefined);
});

test("parseOptions() tells what --onnx needs", () => {
  let text = "";
  assert.throws(() => parseOptions(["--help"], { out: (more) => (text += more), err: (more) => (text += more) }), {
    name: "CommanderError",
  });
  assert.match(text, /npm install --ignore-scripts --prefix FOLDER onnxruntime-node.*PYTHON test\/bench\/export_onnx\.py/s);
  assert.deepEqual(parseOptions(["--checkpoints", "c", "--peer", "p", "--onnx", "o", "--device", "cpu"]).onnx, "o");
  assert.equal(parseOptions(["--checkpoints", "c", "--peer", "p", "--device", "gpu"]).device, "gpu");
});

const result = (seconds: number[], items: number, peak_rss_mb: number): Result => ({
  workload: "clip-image",
  dtype: "bfloat16",
  seconds,
  rate: items / median(seconds),
  unit: "images/s",
  peak_rss_mb,
});
const rounds = [
  { peer: result([2, 4, 2], 32, 1000), ours: result([1, 1, 1], 32, 500) },
  { peer: result([2, 2, 2], 32, 1100), ours: result([4, 4, 4], 32, 550) },
];

test("median() takes the middle, or the mean of the middle two", () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 3, 2]), 2.5);
});

test("toRow() divides rates and peaks, over all rounds", () => {
  const row = toRow(rounds, (seconds) => 1 / seconds);
  assert.equal(row.peer, 16); // median of 2 4 2 2 2 2 is 2 s
  assert.equal(row.ours, 12.8); // median of 1 1 1 4 4 4 is 2.5 s
  assert.equal(row.speedup, row.ours / row.peer);
  assert.deepEqual(row.speedupRange, [0.5, 2]);
  assert.deepEqual([row.oursRssMb, row.peerRssMb, row.memory], [550, 1100, 0.5]);
  assert.equal(row.limitShare, 1 / 2.5);
});

const machine: Machine = {
  processor: "Some Processor",
  instructions: ["avx2"],
  cores: 4,
  threads: 2,
  device: "cpu",
  memoryGb: 8,
  limits: { float32: 4.57e11, bfloat16: 8.4e11, read: 54 * 2 ** 30 },
  versions: { torch: "2.11" },
};

test("table() and machineLines() say what a person compares", () => {
  const [header, line] = table(cells([toRow(rounds, () => 0.763)])).split("\n");
  assert.equal(line, "clip-image  bfloat16  PyTorch  12.8  16.0  images/s  0.80x (0.50x-2.00x)  550      1100     0.50x   76 %");
  assert.equal(header.indexOf("memory"), line.indexOf("0.50x   76"));
  assert.match(
    machineLines(machine),
    /Some Processor \(avx2\), 4 cores, 2 threads each side.*torch 2\.11\n.*457 GFLOP\/s float32, 840 GFLOP\/s bfloat16.*54 GiB\/s/,
  );
});

test("reportJson() holds machine and rows with the ratios", () => {
  const { machine: told, rows } = JSON.parse(reportJson(machine, [toRow(rounds, () => 0.5)]));
  assert.equal(told.processor, "Some Processor");
  const { workload, dtype, ours, peer, unit, speedup, oursRssMb, peerRssMb, memory } = rows[0];
  assert.deepEqual(
    { workload, dtype, ours, peer, unit, speedup, oursRssMb, peerRssMb, memory },
    {
      workload: "clip-image",
      dtype: "bfloat16",
      ours: 12.8,
      peer: 16,
      unit: "images/s",
      speedup: 0.8,
      oursRssMb: 550,
      peerRssMb: 1100,
      memory: 0.5,
    },
  );
});

test("toRow() compares with onnxruntime-node too, and reportJson() keeps those rows apart", () => {
  const three = rounds.map((round) => ({ ...round, onnx: result([1, 2, 2], 32, 1100) }));
  const row = toRow(three, () => 0.5, "onnx");
  assert.deepEqual([row.against, row.ours, row.peer, row.speedup, row.memory], ["onnxruntime-node", 12.8, 16, 0.8, 0.5]);
  assert.deepEqual(row.speedupRange, [0.5, 2]);
  const report = JSON.parse(reportJson(machine, [toRow(three, () => 0.5), row]));
  assert.deepEqual(
    [report.rows.length, report.onnx.length, report.rows[0].against, report.onnx[0].against],
    [1, 1, "PyTorch", "onnxruntime-node"],
  );
  assert.equal("onnx" in JSON.parse(reportJson(machine, [toRow(three, () => 0.5)])), false);
});

test("better() takes each limit from the side that reached it", () => {
  assert.deepEqual(better({ float32: 1, bfloat16: 5, read: 3 }, { float32: 2, bfloat16: 4, read: 3 }), {
    float32: 2,
    bfloat16: 5,
    read: 3,
  });
});

test("operations() counts a ViT-B/32 and its text tower", () => {
  const config = clipConfig({ model_type: "clip" });
  // 12 blocks x 12 D² weights x 2 operations x 1600 positions, scores and sums 4 N D each, 49 patches of 3072 numbers, one projection.
  const image = 1600 * 12 * (24 * 768 ** 2 + 4 * 50 * 768) + 32 * (49 * 2 * 3072 * 768 + 2 * 768 * 512);
  assert.equal(operations("clip-image", config), image);
  assert.equal(operations("embed-files", config), 4 * image);
  const text = (B: number) => B * (77 * 12 * (24 * 512 ** 2 + 4 * 77 * 512) + 2 * 512 * 512);
  assert.equal(operations("clip-text", config), text(64));
  const attention = 12 * 4 * (1600 * 50 * 768 + 32 * 77 * 77 * 512);
  assert.equal(operations("clip-lora", config), 2 * (image + text(32)) + attention);
});

test("profileTable() adds up to the whole time", () => {
  const line = (op: string, seconds: number) => ({ op, calls: 4, seconds, shape: "[2,2]", shapeSeconds: seconds / 2 });
  const rows = profileTable({ seconds: 2, repetitions: 2, lines: [line("MatMul", 1), line("Add", 0.5), line("Mul", 0.3)] }, 2);
  assert.deepEqual(rows[1], ["MatMul", "500.0", "50.0 %", "2", "[2,2] 25.0 %"]);
  assert.deepEqual(
    rows.slice(3).map(([op, ms]) => [op, ms]),
    [
      ["1 other ops", "150.0"],
      ["JavaScript", "100.0"],
      ["all", "1000.0"],
    ],
  );
});

test("startProfile() tells native kernels and TensorFlow's ops apart, with what they compute in", async () => {
  await engine();
  const x = tf.randomNormal([4, 8]) as tf.Tensor2D;
  const [gamma, beta] = [tf.ones([8]) as tf.Tensor1D, tf.zeros([8]) as tf.Tensor1D];
  const profile = startProfile();
  for (let i = 0; i < 3; i++) tf.tidy(() => void tf.matMul(layerNormOp(x, gamma, beta, 1e-5) as tf.Tensor2D, x, false, true).dataSync());
  const calls = new Map(profile.lines().map((line) => [line.op, line.calls]));
  assert.equal(
    calls.get("MatMul float32") ?? calls.get("BatchMatMulV2 float32") ?? calls.get("_FusedMatMul float32"),
    3,
    [...calls.keys()].join(", "),
  );
  if (hasNative("layerNorm")) assert.equal(calls.get("native layerNorm float32"), 3);
  profile.reset();
  assert.deepEqual(profile.lines(), []);
  for (const one of [x, gamma, beta]) one.dispose();
});

test("answer() takes the last line, and shows a failing child's own words", async () => {
  assert.equal(lastLine("a\nb\n\n"), "b");
  const node = (script: string, signal = never) => answer<number[]>("the child", process.execPath, ["-e", script], { signal });
  assert.deepEqual(await node("console.log('noise'); console.log('[1,2]')"), [1, 2]);
  await assert.rejects(node("console.error('no room'); process.exit(3)"), /the child failed \(exit code 3\):\nno room/);
  await assert.rejects(node("console.log('hello')"), /did not answer with a line of JSON, but with: hello/);
  await assert.rejects(answer("the child", "/no/such/python", [], { signal: never }), /there is no command \/no\/such\/python/);
});

test("answer() ends its child when the signal comes", async () => {
  const folder = scratch();
  const stop = new AbortController();
  // The child tells its number and would sleep for a minute.
  const script = `require("node:fs").writeFileSync(${JSON.stringify(join(folder, "pid"))}, String(process.pid)); setTimeout(() => {}, 60000)`;
  const started = performance.now();
  const whenItRuns = setInterval(() => existsSync(join(folder, "pid")) && stop.abort(new Error("stopped")), 50);
  await assert.rejects(answer("the child", process.execPath, ["-e", script], { signal: stop.signal }), /stopped/);
  clearInterval(whenItRuns);
  assert.ok(performance.now() - started < 30_000, "the child was waited for");
  assert.throws(() => process.kill(Number(readFileSync(join(folder, "pid"), "utf8")), 0), { code: "ESRCH" });
});

test("peerVersions() and makeCheckpoints() name what is missing", async () => {
  const folder = scratch();
  await assert.rejects(peerVersions(join(folder, "python"), never), /there is no command/);
  await assert.rejects(
    makeCheckpoints(folder, ["load"], undefined, never, () => {}),
    /holds no clip-vit-base-patch32; give --peer/,
  );
  const file = join(folder, "file");
  writeFileSync(file, "");
  await assert.rejects(
    makeCheckpoints(join(file, "inside"), ["load"], "python3", never, () => {}),
    /cannot be written \(ENOTDIR\)/,
  );
});

test("peerVersions() lists every module that the Python lacks", async () => {
  const python = join(scratch(), "python");
  writeFileSync(python, `#!/bin/sh\necho '{"missing":["torch","peft"],"versions":{"python":"3.12"}}'\n`, { mode: 0o755 });
  await assert.rejects(peerVersions(python, never), /lacks torch, peft\. Make an environment.*requirements-peer\.txt/s);
});
