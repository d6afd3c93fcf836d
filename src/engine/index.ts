/** Which device computes, chosen once a process, and said in one line. */
import { availableParallelism } from "node:os";
import { installBfloat16 } from "./bfloat16";
import { nativeKernels } from "./native";
import { tf } from "./tf";
import { startWebgpu } from "./webgpu";

export { tf };

export type Backend = "tensorflow" | "webgpu" | "wasm" | "cpu";

/** The order of preference; nothing falls back silently: `Engine.why` names what was passed over and the reason. */
const BACKENDS: readonly Backend[] = ["tensorflow", "webgpu", "wasm", "cpu"];

export type Engine = {
  /** The tfjs backend in use. */
  backend: Backend;
  device: "cpu" | "gpu";
  /** Whether `load(…, { dtype: "bfloat16" })` works here. */
  bfloat16: boolean;
  /** One line for a person: what computes and why nothing better does. */
  why: string;
};

let chosen: Promise<Engine> | undefined;

/**
 * Chooses and starts the backend, once a process: TensorFlow (GPU or CPU), then WebGPU, then WebAssembly, then plain JavaScript.
 * `VITRINE_BACKEND=tensorflow|webgpu|wasm|cpu` takes exactly that one or fails.
 *
 * @throws when the named backend cannot start; the message says why and what to do.
 */
export function engine(): Promise<Engine> {
  chosen ??= choose(process.env.VITRINE_BACKEND).catch((error) => {
    chosen = undefined;
    throw error;
  });
  return chosen;
}

async function choose(wanted: string | undefined): Promise<Engine> {
  if (wanted && !BACKENDS.includes(wanted as Backend))
    throw new Error(`VITRINE_BACKEND is "${wanted}"; expected one of ${BACKENDS.join(", ")} (or unset: the best that works)`);
  nativeKernels(); // reads VITRINE_NATIVE: a wrong value is no reason to take another backend
  const failures: string[] = [];
  for (const backend of wanted ? [wanted as Backend] : BACKENDS) {
    let started: Started;
    try {
      started = await start[backend]();
    } catch (error) {
      failures.push(`${backend} (${(error as Error).message.split("\n")[0]})`);
      continue;
    }
    const skipped = failures.length ? `; passed over ${failures.join("; ")}. \`vitrine doctor\` tells how to get the better one` : "";
    return { backend, device: started.device, bfloat16: backend === "tensorflow", why: `${describe(backend, started)}${skipped}` };
  }
  throw new Error(`no compute backend could start: ${failures.join("; ")}. Run \`npm run doctor\` for what is missing.`);
}

function describe(backend: Backend, { device, on }: Started): string {
  const threads = process.env.VITRINE_THREADS ?? String(availableParallelism());
  const names = { tensorflow: "TensorFlow", webgpu: "WebGPU", wasm: "WebAssembly", cpu: "plain JavaScript" };
  const own = backend === "tensorflow" && device === "cpu" && nativeKernels().size === 0;
  const alone = own
    ? ` (its own ops only: ${process.env.VITRINE_NATIVE === "off" ? "VITRINE_NATIVE=off" : "the binding has no kernels"})`
    : "";
  return `${names[backend]} on ${on ?? (device === "gpu" ? "the GPU" : `the CPU, ${threads} threads${alone}`)}`;
}

/** `on`: words for the device, where the driver has some. */
type Started = { device: "cpu" | "gpu"; on?: string };

const start: Record<Backend, () => Promise<Started>> = {
  async tensorflow() {
    const threads = process.env.VITRINE_THREADS;
    if (threads) {
      process.env.TF_NUM_INTRAOP_THREADS ??= threads;
      process.env.OMP_NUM_THREADS ??= threads;
    }
    require("@tensorflow/tfjs-node-gpu");
    await use("tensorflow");
    installBfloat16();
    const { binding, isUsingGpuDevice } = tf.backend() as unknown as {
      binding: { releaseLibraryPages?(): number };
      isUsingGpuDevice: boolean;
    };
    binding.releaseLibraryPages?.(); // 355 -> 108 MB resident; the first product brings 25 MB back
    return { device: isUsingGpuDevice ? "gpu" : "cpu" };
  },
  async webgpu() {
    // A software adapter is slower than WebAssembly: only on request.
    const { name, software } = await startWebgpu(process.env.VITRINE_BACKEND === "webgpu");
    return software ? { device: "cpu", on: `a software adapter (${name}), slower than wasm` } : { device: "gpu", on: name };
  },
  async wasm() {
    const before = ERRORS.map((event) => process.rawListeners(event));
    require("@tensorflow/tfjs-backend-wasm");
    await use("wasm");
    // Its loader ends the process at any error that nobody caught; what happens then is for the program, or the notebook's kernel, to say.
    for (const [i, event] of ERRORS.entries())
      for (const listener of process.rawListeners(event))
        if (!before[i].includes(listener)) process.removeListener(event, listener as () => void);
    return { device: "cpu" };
  },
  async cpu() {
    await use("cpu");
    return { device: "cpu" };
  },
};

const ERRORS = ["uncaughtException", "unhandledRejection"] as const;

async function use(backend: Backend): Promise<void> {
  const registered = tf.findBackend("cpu") as { firstUse?: boolean } | null;
  if (registered) registered.firstUse = false; // tfjs would print an advertisement for tfjs-node
  if (!(await tf.setBackend(backend))) throw new Error(`tfjs could not start its ${backend} backend`);
  await tf.ready();
}
