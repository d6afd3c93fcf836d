/** The second peer, onnxruntime-node: where it is, and the files that it computes. */
import { existsSync, mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { readJson } from "vitrine/files/json";
import { answer } from "./child";
import type { Result } from "./report";
import { CHECKPOINT, type Workload } from "./work";

/** What it is compared in, in float32. */
export const ONNX_WORKLOADS = ["clip-image", "clip-text"] as const satisfies readonly Workload[];
type OnnxWorkload = (typeof ONNX_WORKLOADS)[number];
export const isOnnxWorkload = (workload: Workload): workload is OnnxWorkload => (ONNX_WORKLOADS as readonly string[]).includes(workload);

/** folder: with the .onnx files; place: of the package, as `require` takes it. */
export type OnnxPeer = { folder: string; place: string; version: string };

const EXPORT = join(__dirname, "export_onnx.py");
const fileOf = (folder: string, workload: OnnxWorkload) => join(folder, `${workload}.onnx`);

/**
 * Finds onnxruntime-node from `folder` (its node_modules, or those of a folder above it), and makes the .onnx files there where they are missing.
 *
 * @throws saying what is missing and how to get it
 */
export async function openOnnx(
  folder: string,
  checkpoints: string,
  python: string,
  signal: AbortSignal,
  say: (line: string) => void,
): Promise<OnnxPeer> {
  const found = findPackage(folder);
  if (!ONNX_WORKLOADS.every((workload) => existsSync(fileOf(folder, workload)))) {
    say(`exporting the CLIP towers to ${folder} (0.6 GB, about a minute)`);
    mkdirSync(folder, { recursive: true });
    const { missing } = await answer<{ missing: string[] }>("export_onnx.py", python, [EXPORT, join(checkpoints, CHECKPOINT), folder], {
      signal,
    });
    if (missing.length) throw new Error(cannotExport(folder, checkpoints, python, missing));
  }
  return { folder, ...found };
}

function findPackage(folder: string): { place: string; version: string } {
  try {
    const place = dirname(createRequire(join(folder, "from-here.js")).resolve("onnxruntime-node/package.json"));
    return { place, version: String(readJson(join(place, "package.json")).version) };
  } catch (cause) {
    const text =
      `--onnx ${folder}: there is no onnxruntime-node in its node_modules. It is no dependency of this project; put it there:\n` +
      `  npm install --ignore-scripts --prefix ${folder} onnxruntime-node\n(its processor library travels in the package; the script would fetch CUDA's)`;
    throw new Error(text, { cause });
  }
}

const cannotExport = (folder: string, checkpoints: string, python: string, missing: string[]): string =>
  `--onnx ${folder} holds no ${ONNX_WORKLOADS.map((workload) => `${workload}.onnx`).join(" and ")}, and ${python} cannot make them: it lacks ` +
  `${missing.join(", ")}. Either install that there, or run\n  PYTHON ${EXPORT} ${join(checkpoints, CHECKPOINT)} ${folder}\nwith a Python that has torch, transformers and onnx.`;

/** Measures one workload in a process of its own. */
export const runOnnx = (peer: OnnxPeer, workload: OnnxWorkload, reps: number, threads: number, signal: AbortSignal): Promise<Result> => {
  const args = [join(__dirname, "onnx-peer.mjs"), peer.place, peer.folder, workload, String(reps), String(threads)];
  return answer<Result>(`onnxruntime-node, ${workload}`, process.execPath, args, { signal });
};
