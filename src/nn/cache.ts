/** Keys and values of the tokens so far, for a decoder: room for all of them is made once, and a step copies nothing but its own rows. */
import { bfloat16Zeros } from "../engine/bfloat16";
import { hasNative, runNative, watchNative } from "../engine/native";
import { makeProgram } from "../engine/program";
import { checkStop } from "../engine/stop";
import { tf } from "../engine/tf";
import { tensorsOf } from "./block";
import { insideBlock } from "./lean";

/** What one more token does in a layer, as one call. */
type Step = { params: object; run: ((inputs: tf.Tensor[], length: number) => tf.Tensor) | undefined };

export type Cache = {
  /** Tokens that fit. */
  readonly room: number;
  /** Tokens that are in it. */
  length: number;
  readonly layers: {
    k?: tf.Tensor3D;
    v?: tf.Tensor3D;
    step?: Step;
    /** Of a decoder that reads an encoder: what it made of which states. */
    read?: { states: tf.Tensor3D; k: tf.Tensor3D; v: tf.Tensor3D };
  }[];
  dispose(): void;
};

/** An empty cache for so many layers and tokens. */
export function makeCache(layers: number, room: number): Cache {
  const cache: Cache = {
    room,
    length: 0,
    layers: Array.from({ length: layers }, () => ({})),
    dispose() {
      for (const { k, v, read } of cache.layers) tf.dispose([k, v, read?.k, read?.v].filter(Boolean) as tf.Tensor[]);
      cache.layers.length = 0;
    },
  };
  return cache;
}

/** Numbers of kernels that count the tokens in the cache: the place of new rows, and how many rows there are with the new one. */
const COUNTERS: { [kernel: string]: { number: number; base: number } } = {
  writeRows: { number: 0, base: 0 },
  attention: { number: 4, base: 1 },
};

/**
 * One more token through a layer of a decoder. What `run` calls is recorded the first time, and then done as one call: the kernels of a token take little
 * longer than their calls.
 *
 * @param params the layer's weights
 * @param inputs what is new at each token: the residual stream, and its position where the layer reads it
 * @param constant what `run` reads besides those and the weights
 */
export function nextToken(
  cache: Cache,
  i: number,
  params: object,
  inputs: { x: tf.Tensor3D; positions?: tf.Tensor2D },
  constant: tf.Tensor[],
  run: () => tf.Tensor3D,
): tf.Tensor3D {
  const layer = cache.layers[i];
  if (!hasNative("writeRows")) return run();
  checkStop();
  const open = inputs.positions ? [inputs.x, inputs.positions] : [inputs.x];
  if (layer.step?.params === params && layer.step.run) return layer.step.run(open, cache.length) as tf.Tensor3D;
  if (layer.step?.params === params) return run();
  const { result, calls } = watchNative(run);
  const varying = calls.flatMap(({ name }, call) => (Object.hasOwn(COUNTERS, name) ? [{ call, ...COUNTERS[name] }] : []));
  const held = [...tensorsOf(params), ...constant, layer.k, layer.v].filter(Boolean) as tf.Tensor[];
  const last = calls.at(-1)?.outputs[0];
  layer.step = { params, run: last?.dataId === result.dataId ? makeProgram(calls, open, held, varying) : undefined };
  return result;
}

/**
 * The `cache` of `attention` for one layer: appends keys and values [B, n, G·dh] behind the `cache.length` tokens that are there. The caller counts
 * `cache.length` up once all layers have theirs.
 *
 * @throws RangeError when there is no room, or another batch size came before
 */
export const cacheLayer =
  (cache: Cache, i: number) =>
  (k: tf.Tensor3D, v: tf.Tensor3D): { k: tf.Tensor3D; v: tf.Tensor3D; used?: number } => {
    const used = cache.length + k.shape[1];
    if (used > cache.room) throw new RangeError(`cache: ${used} tokens do not fit the room for ${cache.room}; make a larger cache`);
    const layer = cache.layers[i];
    if (layer.k && layer.k.shape[0] !== k.shape[0])
      throw new RangeError(`cache: it holds ${layer.k.shape[0]} sequences, ${k.shape[0]} came; make a cache for each batch`);
    if (insideBlock() && hasNative("writeRows")) {
      layer.k ??= reserve(k, cache.room);
      layer.v ??= reserve(v, cache.room);
      runNative("writeRows", [layer.k, k], [cache.length]);
      runNative("writeRows", [layer.v, v], [cache.length]);
      return { k: layer.k, v: layer.v, used };
    }
    for (const [name, rows] of [["k", k] as const, ["v", v] as const]) {
      const before = layer[name];
      layer[name] = tf.keep(before ? tf.concat([before, rows], 1) : rows.clone());
      before?.dispose();
    }
    return { k: layer.k!, v: layer.v! };
  };

/**
 * Keys and values that a layer makes of an encoder's states (`keyed` of `attention`), made once for these states and kept with the cache.
 * They belong to the cache.
 */
export function readOnce(
  cache: Cache,
  i: number,
  states: tf.Tensor3D,
  make: () => { k: tf.Tensor3D; v: tf.Tensor3D },
): { k: tf.Tensor3D; v: tf.Tensor3D } {
  const layer = cache.layers[i];
  if (layer.read?.states !== states) {
    if (layer.read) tf.dispose([layer.read.k, layer.read.v]);
    const { k, v } = make();
    layer.read = { states, k: tf.keep(k), v: tf.keep(v) };
  }
  return layer.read;
}

function reserve(like: tf.Tensor3D, room: number): tf.Tensor3D {
  const shape: [number, number, number] = [like.shape[0], room, like.shape[2]];
  return tf.keep((like.dtype as string) === "bfloat16" ? bfloat16Zeros(shape) : tf.zeros(shape)) as tf.Tensor3D;
}
