/** Which device computes, chosen once a process, and said in one line. */
import { availableParallelism } from "node:os";
import { installBfloat16 } from "./bfloat16";
import { nativeKernels } from "./native";
import { tf } from "./tf";

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
    let device: Engine["device"];
    try {
      device = await start[backend]();
    } catch (error) {
      failures.push(`${backend} (${(error as Error).message.split("\n")[0]})`);
      continue;
    }
    const skipped = failures.length ? `; passed over ${failures.join("; ")}. \`vitrine doctor\` tells how to get the better one` : "";
    return { backend, device, bfloat16: backend === "tensorflow", why: `${describe(backend, device)}${skipped}` };
  }
  throw new Error(`no compute backend could start: ${failures.join("; ")}. Run \`npm run doctor\` for what is missing.`);
}

function describe(backend: Backend, device: "cpu" | "gpu"): string {
  const threads = process.env.VITRINE_THREADS ?? String(availableParallelism());
  const names = { tensorflow: "TensorFlow", webgpu: "WebGPU", wasm: "WebAssembly", cpu: "plain JavaScript" };
  const own = backend === "tensorflow" && device === "cpu" && nativeKernels().size === 0;
  const alone = own
    ? ` (its own ops only: ${process.env.VITRINE_NATIVE === "off" ? "VITRINE_NATIVE=off" : "the binding has no kernels"})`
    : "";
  return `${names[backend]} on the ${device === "gpu" ? "GPU" : `CPU, ${threads} threads${alone}`}`;
}

const start: Record<Backend, () => Promise<"cpu" | "gpu">> = {
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
    return isUsingGpuDevice ? "gpu" : "cpu";
  },
  async webgpu() {
    const dawn = require("webgpu") as { create(options: string[]): GpuLike; globals: object };
    Object.assign(globalThis, dawn.globals);
    const gpu = dawn.create([]);
    Object.defineProperty(globalThis, "navigator", { value: { gpu }, configurable: true });
    const adapter = await gpu.requestAdapter();
    if (!adapter) throw new Error("no Vulkan, Metal or D3D12 adapter");
    // A software rasteriser is slower than WebAssembly: only on request.
    if (
      /swiftshader|llvmpipe/i.test(JSON.stringify(adapter.info ?? {}) + adapter.info?.description) &&
      process.env.VITRINE_BACKEND !== "webgpu"
    )
      throw new Error("only a software adapter");
    require("@tensorflow/tfjs-backend-webgpu");
    await use("webgpu");
    return "gpu";
  },
  async wasm() {
    const before = ERRORS.map((event) => process.rawListeners(event));
    require("@tensorflow/tfjs-backend-wasm");
    await use("wasm");
    // Its loader ends the process at any error that nobody caught; what happens then is for the program, or the notebook's kernel, to say.
    for (const [i, event] of ERRORS.entries())
      for (const listener of process.rawListeners(event))
        if (!before[i].includes(listener)) process.removeListener(event, listener as () => void);
    return "cpu";
  },
  async cpu() {
    await use("cpu");
    return "cpu";
  },
};

const ERRORS = ["uncaughtException", "unhandledRejection"] as const;

type GpuLike = { requestAdapter(): Promise<{ info?: { description?: string } } | null> };

async function use(backend: Backend): Promise<void> {
  const registered = tf.findBackend("cpu") as { firstUse?: boolean } | null;
  if (registered) registered.firstUse = false; // tfjs would print an advertisement for tfjs-node
  if (!(await tf.setBackend(backend))) throw new Error(`tfjs could not start its ${backend} backend`);
  await tf.ready();
}
