/** Keys and values of the tokens so far, for a decoder: room for all of them is made once, and a step copies nothing but its own rows. */
import { bfloat16Zeros, gatherBfloat16, isBfloat16 } from "../engine/bfloat16";
import { hasNative, runNative, watchNative } from "../engine/native";
import { makeProgram } from "../engine/program";
import { checkStop } from "../engine/stop";
import { tf } from "../engine/tf";
import { tensorsOf } from "./block";
import { insideBlock } from "./lean";

/** What one more token does in a layer, as one call. */
type Step = { params: object; run: ((inputs: tf.Tensor[], length: number) => tf.Tensor) | undefined };

/** Keys and values of a layer: [B, room, G·dh] where `reserved`, in whose rows new ones are written; else [B, length, G·dh], made anew at each step. */
type Layer = {
  k?: tf.Tensor3D;
  v?: tf.Tensor3D;
  reserved?: boolean;
  step?: Step;
  /** Of a decoder that reads an encoder: what it made of which states. */
  read?: { states: tf.Tensor3D; k: tf.Tensor3D; v: tf.Tensor3D };
};

export type Cache = {
  /** Tokens that fit. */
  readonly room: number;
  /** Tokens that are in it. */
  length: number;
  readonly layers: Layer[];
  /** Makes room for so many tokens in all; what is in the cache stays. Less than there is changes nothing. */
  reserve(room: number): void;
  /**
   * Sequence i becomes what sequence `sequences[i]` was: beams that go on from others. As many sequences as the list is long, so that
   * `[0, 0, 0]` makes three of one. The first `same` tokens are those of every sequence, and are left as they are.
   *
   * @throws RangeError for a sequence that is not there
   */
  reorder(sequences: ArrayLike<number>, same?: number): void;
  /** Forgets all but the first `length` tokens, and what a step that was broken off has left. @throws RangeError when there are fewer */
  truncate(length: number): void;
  dispose(): void;
};

/** An empty cache for so many layers and tokens. */
export function makeCache(layers: number, room: number): Cache {
  const cache: Cache & { room: number } = {
    room,
    length: 0,
    layers: Array.from({ length: layers }, () => ({})),
    reserve(room) {
      if (!(room > cache.room)) return;
      for (const layer of cache.layers)
        if (layer.k && layer.reserved)
          move(
            layer,
            cache.length,
            room,
            Array.from({ length: layer.k.shape[0] }, (_, b) => b),
          );
      cache.room = room;
    },
    reorder(sequences, same = 0) {
      const from = Array.from(sequences);
      for (const layer of cache.layers) reorderLayer(layer, from, same, cache);
    },
    truncate(length) {
      if (!(Number.isInteger(length) && length >= 0 && length <= cache.length))
        throw new RangeError(`cache: it holds ${cache.length} tokens; truncate(${length}) expects a whole number from 0 to that`);
      for (const layer of cache.layers) if (!layer.reserved) cut(layer, length);
      cache.length = length;
    },
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
      layer.reserved = true;
      layer.k ??= reserve(k, k.shape[0], cache.room);
      layer.v ??= reserve(v, k.shape[0], cache.room);
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

function reserve(like: tf.Tensor3D, batch: number, room: number): tf.Tensor3D {
  const shape: [number, number, number] = [batch, room, like.shape[2]];
  return tf.keep(isBfloat16(like) ? bfloat16Zeros(shape) : tf.zeros(shape)) as tf.Tensor3D;
}

/** Tokens `first` to `last` of some sequences: [sequences.length, last - first, W] */
function rowsOf(x: tf.Tensor3D, sequences: number[], first: number, last: number): tf.Tensor3D {
  const [B, room, W] = x.shape;
  const count = last - first;
  return tf.tidy(() => {
    const flat = x.reshape([B * room, W]) as tf.Tensor2D;
    const rows = tf.tensor1d(
      Int32Array.from({ length: sequences.length * count }, (_, i) => sequences[Math.floor(i / count)] * room + first + (i % count)),
      "int32",
    );
    return (isBfloat16(x) ? gatherBfloat16(flat, rows) : tf.gather(flat, rows)).reshape([sequences.length, count, W]);
  }) as tf.Tensor3D;
}

/** Puts a layer's tokens into new memory: for other sequences, or with more room. */
function move(layer: Layer, length: number, room: number, sequences: number[]): void {
  for (const name of ["k", "v"] as const) {
    const before = layer[name]!;
    const after = reserve(before, sequences.length, room);
    if (length > 0) {
      const rows = rowsOf(before, sequences, 0, length);
      runNative("writeRows", [after, rows], [0]);
      rows.dispose();
    }
    before.dispose();
    layer[name] = after;
  }
  layer.step = undefined; // it writes where the rows were
}

function reorderLayer(layer: Layer, sequences: number[], same: number, { length, room }: Cache): void {
  const { k, reserved } = layer;
  if (!k) return;
  const B = k.shape[0];
  const odd = sequences.find((b) => !(Number.isInteger(b) && b >= 0 && b < B));
  if (odd !== undefined || sequences.length === 0)
    throw new RangeError(`cache: reorder([${sequences}]) of ${B} sequences; expected numbers from 0 to ${B - 1}`);
  if (sequences.length === B && sequences.every((from, to) => from === to)) return;
  if (reserved && sequences.length !== B) {
    move(layer, length, room, sequences);
    return;
  }
  for (const name of ["k", "v"] as const) {
    const x = layer[name]!;
    if (!reserved) {
      layer[name] = tf.keep(rowsOf(x, sequences, 0, x.shape[1]));
      x.dispose();
    } else if (length > same) {
      const rows = rowsOf(x, sequences, same, length);
      runNative("writeRows", [x, rows], [same]);
      rows.dispose();
    }
  }
}

function cut(layer: Layer, length: number): void {
  for (const name of ["k", "v"] as const) {
    const x = layer[name];
    if (!x || x.shape[1] <= length) continue;
    layer[name] = length === 0 ? undefined : tf.keep(x.slice([0, 0, 0], [-1, length, -1]));
    x.dispose();
  }
}

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
