/** The command line of the bench. */
import { availableParallelism } from "node:os";
import { Command, Option, InvalidArgumentError } from "commander";
import { DEVICES, type Device } from "./device";
import { WORKLOADS, type Workload } from "./work";

/** Of our weights. What the peer lacks on a CPU, int8 and NF4, is compared with its bfloat16, and is measured where a decoder takes part. */
export const DTYPES = ["float32", "bfloat16", "int8", "nf4"] as const;
export type BenchDtype = (typeof DTYPES)[number];
/** The peer's dtype beside ours. */
export const peerDtype = (dtype: BenchDtype): "float32" | "bfloat16" => (dtype === "float32" ? "float32" : "bfloat16");
/** Whether a workload is measured with these weights. */
export const goesWith = (workload: Workload, dtype: BenchDtype): boolean =>
  dtype === "float32" || dtype === "bfloat16" || workload.startsWith("vlm-");

export type Options = {
  /** The Python with torch, transformers and peft; unset only with `profile`. */
  peer?: string;
  checkpoints: string;
  workloads: Workload[];
  dtypes: BenchDtype[];
  /** Timed repetitions in a process. */
  reps: number;
  /** Processes of each side and row. */
  rounds: number;
  threads: number;
  /** Where both sides compute. */
  device: Device;
  /** The folder of the second peer: onnxruntime-node in its node_modules, and the .onnx files. */
  onnx?: string;
  json?: string;
  /** Time ours by kernel instead of comparing. */
  profile: boolean;
};

const ONNX_HELP = `
--onnx FOLDER: first  npm install --ignore-scripts --prefix FOLDER onnxruntime-node
  The bench writes FOLDER/clip-image.onnx and clip-text.onnx with the peer's Python if that has the package onnx; else make them with
  any Python that has torch, transformers and onnx:  PYTHON test/bench/export_onnx.py CHECKPOINTS/clip-vit-base-patch32 FOLDER`;

/** @throws CommanderError (with its text already printed) for an argument that is unknown, missing or impossible, and for --help */
export function parseOptions(args: string[], print?: { out(text: string): void; err(text: string): void }): Options {
  const command = new Command("npm run bench --")
    .description("Compares speed and peak memory with PyTorch + transformers + PEFT: both sides in turn, one process a measurement.")
    .option("--peer <python>", "Python with torch, transformers and peft (src/setup/requirements-peer.txt)")
    .requiredOption("--checkpoints <folder>", "real-size checkpoints of random weights; made there (2.7 GB) when missing")
    .option("--workloads <list>", `of ${WORKLOADS.join(",")}`, listOf(WORKLOADS), [...WORKLOADS])
    .option("--dtypes <list>", `of ${DTYPES.join(",")}`, listOf(DTYPES), [...DTYPES])
    .option("--reps <n>", "timed repetitions in each process", wholeNumber(1), 6)
    .option("--rounds <n>", "processes of each side and row, at least 2", wholeNumber(2), 2)
    .option("--threads <n>", "threads of both sides (default: the number of cores)", wholeNumber(1))
    .addOption(
      new Option("--device <name>", "where both sides compute (gpu: CUDA; memory is still that of the host)")
        .choices(DEVICES)
        .default("cpu"),
    )
    .option("--onnx <folder>", "compare with onnxruntime-node too, found in FOLDER/node_modules (float32, clip-image and clip-text)")
    .option("--json <file>", "write the rows there too")
    .option("--profile", "time ours by kernel and TensorFlow op, without the peer", false)
    .addHelpText("after", ONNX_HELP)
    .allowExcessArguments(false)
    .configureOutput(print ? { writeOut: print.out, writeErr: print.err } : {})
    .exitOverride();
  command.parse(args, { from: "user" });
  const options = command.opts<Options>();
  if (!options.peer && !options.profile)
    command.error("error: --peer is missing: the Python that the comparison is with (or --profile to time ours alone)");
  if (options.onnx && options.profile) command.error("error: --onnx is a comparison; it does not go with --profile");
  if (options.onnx && options.device === "gpu") command.error("error: --onnx compares on the CPU; it does not go with --device gpu");
  if (options.json && options.profile) command.error("error: --json holds comparisons; it does not go with --profile");
  return { ...options, threads: options.threads ?? availableParallelism() };
}

const listOf =
  <T extends string>(known: readonly T[]) =>
  (text: string): T[] => {
    const items = text.split(",").map((item) => item.trim());
    const unknown = items.filter((item) => !known.includes(item as T));
    if (unknown.length)
      throw new InvalidArgumentError(`${unknown.map((item) => `"${item}"`).join(", ")} not known; known: ${known.join(", ")}.`);
    return [...new Set(items)] as T[];
  };

const wholeNumber =
  (least: number) =>
  (text: string): number => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < least || value > 10_000)
      throw new InvalidArgumentError(`Expected a whole number from ${least} to 10000.`);
    return value;
  };
