/** PyTorch's answers from a Python with torch, transformers and peft, where there is one (reference.py). */
import { spawnSync } from "node:child_process";
import { join } from "node:path";

const python = process.env.VITRINE_PEER_PYTHON;

/** Why the tests against a living PyTorch do not run here; false where they do. */
export const noReference = python
  ? false
  : "set VITRINE_PEER_PYTHON to a Python with torch, transformers, peft and safetensors (src/setup/requirements-peer.txt)";

/** Sends jobs to reference.py and gives their answers in order. */
// biome-ignore lint/suspicious/noExplicitAny: each job has an answer of its own
export function reference(jobs: object[]): any[] {
  const { status, stdout, stderr } = spawnSync(python!, [join(__dirname, "reference.py")], {
    input: JSON.stringify(jobs),
    encoding: "utf8",
    maxBuffer: 1 << 28,
    env: { ...process.env, HF_HUB_OFFLINE: "1", CUDA_VISIBLE_DEVICES: "", OMP_NUM_THREADS: "2" },
  });
  if (status !== 0) throw new Error(`reference.py failed:\n${stderr.slice(-3000)}`);
  return JSON.parse(stdout.trim().split("\n").pop()!);
}
