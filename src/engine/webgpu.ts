/**
 * tfjs's WebGPU backend in Node, on Dawn (the npm package `webgpu`): starting it, and errors where it alone would go on with zeros. WebGPU
 * reports a refused command or a lost device beside the program, not from the call, and tfjs 4.22 does not listen.
 */
import { tf } from "./tf";

export type WebgpuAdapter = {
  /** What the driver calls it. */
  name: string;
  /** A processor that plays a GPU (SwiftShader, llvmpipe): right numbers, for tests. */
  software: boolean;
};

type Info = { vendor?: string; architecture?: string; device?: string; description?: string; isFallbackAdapter?: boolean };
type Gpu = { requestAdapter(options: object): Promise<{ info: Info } | null> };
type Device = {
  limits: { maxStorageBuffersPerShaderStage: number };
  lost: Promise<{ reason: string; message: string }>;
  addEventListener(name: "uncapturederror", listen: (event: { error: { message: string } }) => void): void;
};
/** The part of tfjs's backend that is used here (tfjs-backend-webgpu/src/backend_webgpu.ts). */
type Backend = {
  device: Device;
  tensorMap: { has(id: object): boolean; get(id: object): { resource?: object | null; values?: object | null } };
  stagingPendingDisposal: object[];
  ensureCommandEncoderReady(): void;
  endComputePassEncoder(): void;
  submitQueue(): void;
  uploadToGPU(dataId: object): void;
  read(dataId: object): Promise<unknown>;
  readSync(dataId: object): unknown;
};

/**
 * tfjs takes a workgroup for each number of a small product, which suits a GPU. On a processor its program of small tiles is five times as fast there,
 * and compiles in a tenth of the time of the general one (measured on SwiftShader).
 */
const SMALL_TILES = 2;

const SOFTWARE = /swiftshader|llvmpipe|lavapipe|basic render/i;

/**
 * Starts the backend on the fastest adapter that Dawn finds.
 *
 * @param software whether an adapter that is no GPU will do
 * @throws where there is no adapter, or only one of software and none was asked for
 */
export async function startWebgpu(software: boolean): Promise<WebgpuAdapter> {
  const dawn = require("webgpu") as { create(options: string[]): Gpu; globals: object };
  const gpu = dawn.create([]);
  const found = await gpu.requestAdapter({ powerPreference: "high-performance" }); // as tfjs asks, and so the same one
  if (!found)
    throw new Error("no adapter: Dawn finds no Vulkan, Metal or D3D12 driver of a GPU; on Linux it needs libvulkan1 and the GPU's driver");
  const adapter = describeAdapter(found.info);
  if (adapter.software && !software) throw new Error(`only ${adapter.name}, which is no GPU; VITRINE_BACKEND=webgpu takes it all the same`);
  Object.assign(globalThis, dawn.globals);
  if (!globalThis.navigator) Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true });
  Object.defineProperty(globalThis.navigator, "gpu", { value: gpu, configurable: true });
  require("@tensorflow/tfjs-backend-webgpu");
  await tf.setBackend("webgpu");
  await tf.ready();
  const backend = tf.backend() as unknown as Backend;
  watch(backend);
  if (adapter.software) tf.env().set("WEBGPU_MATMUL_PROGRAM_TYPE", SMALL_TILES);
  sumInParts(backend.device.limits.maxStorageBuffersPerShaderStage);
  return adapter;
}

function describeAdapter({ vendor, architecture, device, description, isFallbackAdapter }: Info): WebgpuAdapter {
  const words = [vendor, architecture, device, description].filter(Boolean);
  return {
    name: description || words.join(" ") || "an adapter without a name",
    software: isFallbackAdapter || SOFTWARE.test(words.join(" ")),
  };
}

/**
 * Errors instead of silent zeros. A refused command takes along all that was recorded with it. So every buffer that a command fills remembers
 * its time, which ends with each read and each refusal; the buffers of a time with a refusal are lost, and who reads or computes with one is
 * told so. Others, and new ones, go on.
 */
function watch(backend: Backend): void {
  const born = new WeakMap<object, number>();
  const refused = new Map<number, string>();
  let [now, reading, gone] = [0, 0, ""];
  backend.device.addEventListener("uncapturederror", ({ error }) => {
    const reason = error.message.trim().split("\n")[0]!;
    for (const time of reading ? [now - 1, now] : [now]) if (!refused.has(time)) refused.set(time, reason); // a read may have begun before
    now += 1;
  });
  void backend.device.lost.then(({ reason, message }) => {
    gone = [reason, message].filter(Boolean).join(": ");
  });
  const check = (dataId: object) => {
    if (gone)
      throw new Error(
        `WebGPU: the GPU was lost (${gone}), and all tensors with it. Start the kernel or program again; if it happens again, compute less at once (smaller batches)`,
      );
    const reason = refused.get(born.get(dataId) ?? -1);
    if (!reason) return;
    backend.ensureCommandEncoderReady(); // what was recorded beside it is lost too; the next command begins anew
    backend.endComputePassEncoder();
    backend.submitQueue();
    throw new Error(
      `WebGPU: this tensor was never computed, because the GPU refused a command: ${reason} Make it again, from tensors that can be read; if memory ran out, with smaller batches`,
    );
  };
  const { uploadToGPU, read, readSync } = backend;
  backend.uploadToGPU = (dataId) => {
    check(dataId);
    const { resource, values } = backend.tensorMap.get(dataId);
    const staged = backend.stagingPendingDisposal.length;
    uploadToGPU.call(backend, dataId);
    const written = values && backend.stagingPendingDisposal.length === staged; // by the processor, with no command that could be refused
    if (!resource && !written) born.set(dataId, now);
  };
  backend.read = async (dataId) => {
    const data = backend.tensorMap.has(dataId) ? backend.tensorMap.get(dataId) : undefined;
    if (!data || data.values) return read.call(backend, dataId);
    for (let trial = 1; ; trial++) {
      check(dataId);
      const refusals = refused.size;
      const values = read.call(backend, dataId);
      now += 1;
      reading += 1;
      await values.finally(() => (reading -= 1)).catch(() => check(dataId));
      check(dataId);
      if (refused.size === refusals) return values;
      data.values = null; // the copy was recorded with a refused command: once more
      if (trial === 3) throw new Error(`WebGPU: the GPU refuses to give this tensor out: ${[...refused.values()].at(-1)}`);
    }
  };
  backend.readSync = (dataId) => {
    if (backend.tensorMap.get(dataId).values) return readSync.call(backend, dataId);
    throw new Error("WebGPU has no synchronous read in Node: write `await x.data()` for x.dataSync(), `await x.array()` for x.arraySync()");
  };
}

/** tfjs's AddN binds all its inputs at once, and a shader may bind eight buffers; more are added in parts. */
function sumInParts(buffers: number): void {
  const most = buffers - 1; // one is the sum's
  const stock = tf.getKernel("AddN", "webgpu");
  if (!stock) throw new Error("WebGPU: this tfjs has no AddN to mend; expected version 4.22");
  tf.unregisterKernel("AddN", "webgpu");
  tf.registerKernel({
    ...stock,
    kernelFunc: (params) => {
      let terms = params.inputs as unknown as tf.TensorInfo[];
      const add = (some: tf.TensorInfo[]) =>
        stock.kernelFunc({ ...params, inputs: some as unknown as tf.NamedTensorInfoMap }) as tf.TensorInfo;
      let parts: tf.TensorInfo[] = [];
      while (terms.length > most) {
        const next = Array.from({ length: Math.ceil(terms.length / most) }, (_, i) => add(terms.slice(i * most, (i + 1) * most)));
        for (const part of parts) tf.backend().disposeData(part.dataId);
        terms = parts = next;
      }
      const sum = add(terms);
      for (const part of parts) tf.backend().disposeData(part.dataId);
      return sum;
    },
  });
}
