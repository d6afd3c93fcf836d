/** Whether both sides have the GPU that --device gpu asks for. Run as a process it tells what ours computes on (node --import tsx test/bench/device.ts). */
import { engine } from "vitrine/engine";
import { answer } from "./child";

export const DEVICES = ["cpu", "gpu"] as const;
export type Device = (typeof DEVICES)[number];

const LOOK = "import json, torch; print(json.dumps(dict(found=torch.cuda.is_available(), torch=torch.__version__)))";

type Ours = { device: Device; why: string };

/**
 * @param ask runs this file as our side's child
 * @param python of the peer; undefined where only ours is measured
 * @throws naming each side that found no GPU, and what to do
 */
export async function checkGpu(ask: () => Promise<Ours>, python: string | undefined, signal: AbortSignal): Promise<void> {
  const misfits: string[] = [];
  const { device, why } = await ask();
  if (device !== "gpu")
    misfits.push(
      `ours computes with ${why}. On a machine with an NVIDIA GPU: VITRINE_DEVICE=gpu npm run setup, and npm run doctor tells what is missing`,
    );
  if (python) {
    const peer = await answer<{ found: boolean; torch: string }>(`--peer ${python}`, python, ["-c", LOOK], { signal });
    if (!peer.found)
      misfits.push(
        `the peer's torch ${peer.torch} finds no CUDA device (torch.cuda.is_available() is False); it needs an NVIDIA GPU, its driver, and a CUDA build of torch`,
      );
  }
  if (misfits.length)
    throw new Error(
      `--device gpu: no GPU on ${misfits.length === 2 ? "either side" : "one side"}:\n${misfits.map((line) => `  ${line}`).join("\n")}`,
    );
}

if (require.main === module)
  engine().then(
    ({ device, why }) => console.log(JSON.stringify({ device, why } satisfies Ours)),
    (error) => {
      console.error(error);
      process.exitCode = 1;
    },
  );
