/** Taps that say what they watch, so that the rest of a model runs fused. */
import { tf } from "../engine/tf";
import { record, type Tap } from "../nn/tap";

/** `tap` for these full names alone: blocks that hold none of them run as if nobody looked. */
export function watching(names: readonly string[], tap: Tap): Tap {
  const wanted = new Set(names);
  const inner: Tap = (name, x) => (wanted.has(name) ? tap(name, x) : x);
  inner.watches = (prefix) => prefix === "" || names.some((name) => name === prefix || name.startsWith(`${prefix}.`));
  return inner;
}

/**
 * Names and shapes of the activations that match, in the order in which a run makes them. The run is a real one; its result is freed.
 *
 * @throws when nothing matches: lists what there is
 */
export function namesOf(which: RegExp | string | readonly string[], run: (tap: Tap) => tf.Tensor): Map<string, number[]> {
  const { tap, seen } = record(which);
  tf.tidy(() => {
    run(tap);
  });
  const found = new Map(seen.entries().map(([name, x]) => [name, x.shape.slice()] as const));
  if (found.size === 0) seen.get(String(which)); // throws, and says what there is
  seen.dispose();
  return found;
}
