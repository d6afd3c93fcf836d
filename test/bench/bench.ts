/** npm run bench -- --peer PYTHON --checkpoints DIR: speed and peak memory beside PyTorch + transformers + PEFT, in one run. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { availableParallelism, cpus, totalmem } from "node:os";
import { dirname, join, resolve } from "node:path";
import { CommanderError } from "commander";
import { writeFileAtomic } from "vitrine/files/atomic";
import { readJson } from "vitrine/files/json";
import { clipConfig } from "vitrine/models/clip";
import { internVLConfig } from "vitrine/models/internvl";
import { answer } from "./child";
import { compiledScripts } from "./compiled";
import { checkGpu } from "./device";
import { makeFiles } from "./files";
import { better, type Limits } from "./limits";
import { isOnnxWorkload, type OnnxPeer, openOnnx, runOnnx } from "./onnx-side";
import { type BenchDtype, type Options, parseOptions, goesWith, peerDtype } from "./options";
import { makeCheckpoints, PEER, peerVersions } from "./peer-side";
import { profileTable } from "./profile";
import { cells, type Machine, machineLines, type Result, type Round, type Row, reportJson, toRow } from "./report";
import { table } from "../support/table";
import { checkpointOf, decodeBytes, operations, qFormerOperations, vlmOperations, type Workload } from "./work";

type Context = { options: Options; signal: AbortSignal };

const say = (line: string): void => void process.stderr.write(`${line}\n`);

/** Hides GPUs from TensorFlow, so that both sides compute on the processor also where its CUDA build is installed. */
const NO_GPU = { CUDA_VISIBLE_DEVICES: "" };

const scripts = compiledScripts();
process.once("exit", scripts.remove);

/** Our side as a child: the same Node, this folder's script. */
function ours<T>({ options, signal }: Context, what: string, script: string, args: string[]): Promise<T> {
  const { threads, device } = options;
  const env = {
    VITRINE_THREADS: String(threads),
    VITRINE_DEVICE: device,
    ...(device === "cpu" ? NO_GPU : {}),
    VITRINE_BACKEND: process.env.VITRINE_BACKEND ?? "tensorflow",
  };
  return answer<T>(what, process.execPath, [scripts.script(script), ...args], { env, signal });
}

const runOurs = (context: Context, workload: Workload, dtype: BenchDtype): Promise<Result> => {
  const { checkpoints, reps, profile } = context.options;
  return ours(context, `ours, ${workload} ${dtype}`, "ours.ts", [
    checkpoints,
    workload,
    dtype,
    String(reps),
    ...(profile ? ["--profile"] : []),
  ]);
};

/** What torch calls them. */
const TORCH_DEVICES = { cpu: "cpu", gpu: "cuda" };

const runPeer = ({ options, signal }: Context, workload: Workload, dtype: BenchDtype): Promise<Result> => {
  const args = [
    PEER,
    "run",
    options.checkpoints,
    workload,
    "--dtype",
    peerDtype(dtype),
    "--reps",
    String(options.reps),
    "--threads",
    String(options.threads),
    "--device",
    TORCH_DEVICES[options.device],
  ];
  return answer(`peer, ${workload} ${dtype}`, options.peer!, args, { signal });
};

async function findMachine(context: Context, versions: Record<string, string>): Promise<Machine> {
  const { options, signal } = context;
  say("measuring the machine's limits");
  const args = [join(__dirname, "limits.py"), String(options.threads), TORCH_DEVICES[options.device]];
  const peer = await answer<Limits>("limits.py", options.peer!, args, { signal });
  const limits = better(peer, await ours<Limits>(context, "limits.ts", "limits.ts", []));
  return {
    processor: cpus()[0]?.model.trim() || process.arch,
    instructions: instructions(),
    cores: availableParallelism(),
    threads: options.threads,
    device: options.device,
    memoryGb: Math.round(totalmem() / 2 ** 30),
    limits,
    versions: { node: process.versions.node, ...versions },
  };
}

/** What of the processor decides the ratios, where the system tells it (Linux on x86-64). */
function instructions(): string[] {
  const file = "/proc/cpuinfo";
  const flags = existsSync(file) ? new Set(/^flags\s*:(.*)$/m.exec(readFileSync(file, "utf8"))?.[1].trim().split(" ")) : new Set<string>();
  return ["avx2", "avx512f", "avx512_bf16", "amx_bf16"].filter((flag) => flags.has(flag));
}

/** Bits of a number in our weights. */
const BITS = { float32: 32, bfloat16: 16, int8: 8.25, nf4: 4.13 };

/** Seconds of one repetition -> share of the machine's limit: of its best product, or where weights are only read, of its memory reads. */
function shareOf(checkpoints: string, workload: Workload, dtype: BenchDtype, limits: Limits): (seconds: number) => number {
  const folder = join(checkpoints, checkpointOf(workload));
  const reads = (bytes: number) => (seconds: number) => bytes / seconds / limits.read;
  const computes = (work: number) => (seconds: number) => work / seconds / limits[peerDtype(dtype)];
  if (workload === "load") return reads(statSync(join(folder, "model.safetensors")).size);
  const config = readJson(join(folder, "config.json"));
  if (workload === "qformer") return computes(qFormerOperations(config as never));
  if (workload === "vlm-decode") return reads(decodeBytes(internVLConfig(config), BITS[dtype]));
  if (workload === "vlm-prefill" || workload === "vlm-lora") return computes(vlmOperations(workload, internVLConfig(config)));
  return computes(operations(workload, clipConfig(config)));
}

/** The rounds of one row: peer, ours (and onnxruntime-node), peer, ours, so that a change of the machine's load meets both. */
async function measureRow(context: Context, workload: Workload, dtype: BenchDtype, onnx?: OnnxPeer): Promise<Round[]> {
  const rounds: Round[] = [];
  const { rounds: count, reps, threads } = context.options;
  const told = (side: string, { rate, unit, peak_rss_mb }: Result) => `${side} ${rate.toPrecision(3)} ${unit}, ${peak_rss_mb} MB`;
  for (let i = 1; i <= count; i++) {
    const peer = await runPeer(context, workload, dtype);
    const mine = await runOurs(context, workload, dtype);
    const second =
      onnx && dtype === "float32" && isOnnxWorkload(workload) ? await runOnnx(onnx, workload, reps, threads, context.signal) : undefined;
    rounds.push({ peer, ours: mine, onnx: second });
    const sides = [told("peer", peer), told("ours", mine), ...(second ? [told("onnxruntime-node", second)] : [])];
    say(`${workload} ${dtype}, round ${i} of ${count}: ${sides.join("; ")}`);
  }
  return rounds;
}

async function compare(context: Context, versions: Record<string, string>): Promise<void> {
  const { options, signal } = context;
  const onnx = options.onnx ? await openOnnx(options.onnx, options.checkpoints, options.peer!, signal, say) : undefined;
  const machine = await findMachine(context, onnx ? { ...versions, "onnxruntime-node": onnx.version } : versions);
  const rows: Row[] = [];
  for (const workload of options.workloads)
    for (const dtype of options.dtypes.filter((one) => goesWith(workload, one))) {
      const rounds = await measureRow(context, workload, dtype, onnx);
      const share = shareOf(options.checkpoints, workload, dtype, machine.limits);
      rows.push(toRow(rounds, share));
      if (rounds[0].onnx) rows.push(toRow(rounds, share, "onnx"));
    }
  console.log(`\n${machineLines(machine)}\n\n${table(cells(rows))}`);
  if (options.json) await writeFileAtomic(options.json, reportJson(machine, rows));
}

async function profile(context: Context): Promise<void> {
  for (const workload of context.options.workloads)
    for (const dtype of context.options.dtypes.filter((one) => goesWith(workload, one))) {
      const result = await runOurs(context, workload, dtype);
      console.log(
        `\n${workload} ${dtype}: ${result.rate.toPrecision(3)} ${result.unit}, peak ${result.peak_rss_mb} MB\n${table(profileTable(result.profile!))}`,
      );
    }
}

async function main(args: string[], signal: AbortSignal): Promise<void> {
  const parsed = parseOptions(args);
  const options = {
    ...parsed,
    checkpoints: resolve(parsed.checkpoints),
    json: parsed.json && resolve(parsed.json),
    onnx: parsed.onnx && resolve(parsed.onnx),
  };
  // Half an hour of measuring must not end in a file that cannot be written.
  if (options.json && !existsSync(dirname(options.json)))
    throw new Error(`--json ${options.json}: its folder does not exist; create it first`);
  const versions = options.peer ? await peerVersions(options.peer, signal) : {};
  if (options.device === "gpu") await checkGpu(() => ours({ options, signal }, "device.ts", "device.ts", []), options.peer, signal);
  await makeCheckpoints(options.checkpoints, options.workloads, options.peer, signal, say);
  if (options.workloads.includes("embed-files")) await makeFiles(options.checkpoints, signal, say);
  await (options.profile ? profile({ options, signal }) : compare({ options, signal }, versions));
}

const stop = new AbortController();
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(name, () => stop.abort(new Error("stopped")));
main(process.argv.slice(2), stop.signal).catch((error) => {
  process.exitCode = stop.signal.aborted ? 130 : error instanceof CommanderError ? error.exitCode : 1;
  if (!(error instanceof CommanderError)) console.error(stop.signal.aborted ? "\nStopped; nothing was written." : (error as Error).message);
});
