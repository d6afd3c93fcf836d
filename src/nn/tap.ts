/**
 * Taps: a forward pass names each activation where it is made, `x = tap("resid_mid", x)`, in TransformerLens's vocabulary. The default tap
 * does nothing; `record()` makes one that watches, `edit()` one that replaces. A name or pattern that met no activation is an error.
 */
import { isBfloat16, toBfloat16, toFloat32 } from "../engine/bfloat16";
import { tf } from "../engine/tf";

/** Receives an activation under its full name; what it returns goes on through the model. */
export type Tap = {
  <T extends tf.Tensor>(name: string, x: T): T;
  /** Whether any activation whose name starts with `prefix` is watched; a block that nobody watches may run fused. */
  watches?: (prefix: string) => boolean;
};

/** Watches nothing. */
export const noTap: Tap = Object.assign(<T extends tf.Tensor>(_name: string, x: T): T => x, { watches: () => false });

/** The tap of a part of the model: `at(tap, "vision.blocks.3")("resid_mid", x)` names `vision.blocks.3.resid_mid`. */
export function at(tap: Tap, prefix: string): Tap {
  if (tap === noTap) return noTap;
  const inner: Tap = (name, x) => tap(`${prefix}.${name}`, x);
  inner.watches = (rest) => tap.watches?.(rest ? `${prefix}.${rest}` : prefix) ?? true;
  return inner;
}

/** Whether a tap wants anything at or below this point. */
export const watched = (tap: Tap): boolean => tap !== noTap && (tap.watches?.("") ?? true);

export type Recording = {
  tap: Tap;
  /** The recorded activations by full name. They live until `dispose()`. @throws when the name was not recorded: lists what was. */
  seen: { get(name: string): tf.Tensor; names(): string[]; entries(): [string, tf.Tensor][]; dispose(): void };
};

/**
 * A tap that keeps the activations whose full name matches (a string matches exactly or as the name's last parts; a pattern is tested).
 *
 * @example const { tap, seen } = record(/pattern$/); clip.encodeImage(pixels, tap); seen.get("vision.blocks.3.attn.pattern") // [B, H, N, N]
 */
export function record(which: RegExp | string | readonly string[] = /./): Recording {
  const matches = matcher(which);
  const kept = new Map<string, tf.Tensor>();
  const everything: string[] = [];
  const tap: Tap = (name, x) => {
    everything.push(name);
    if (!matches(name)) return x;
    kept.get(name)?.dispose();
    kept.set(name, tf.keep(isBfloat16(x) ? toFloat32(x) : x.clone()));
    return x;
  };
  const get = (name: string) => {
    const x = kept.get(name);
    if (x) return x;
    if (kept.size === 0 && everything.length === 0) throw new Error(`record: nothing ran with this tap yet, so "${name}" is not there`);
    if (kept.size === 0)
      throw new Error(`record: ${String(which)} met none of the ${everything.length} activations, such as ${sample(everything)}`);
    throw new Error(`record: no activation "${name}"; recorded: ${sample([...kept.keys()])}`);
  };
  const dispose = () => {
    for (const x of kept.values()) x.dispose();
    kept.clear();
  };
  return { tap, seen: { get, names: () => [...kept.keys()], entries: () => [...kept.entries()], dispose } };
}

/**
 * A tap that replaces activations: for each that matches, `change(x, name)` goes on through the model instead (same shape).
 * `edited()` lists the names it changed; call `check()` after the run: it throws when nothing matched, since a typo must not look like a null result.
 *
 * @example const ablate = edit("vision.blocks.3.attn.z", (z) => tf.zerosLike(z)); clip.encodeImage(pixels, ablate.tap); ablate.check();
 */
export function edit(
  which: RegExp | string | readonly string[],
  change: (x: tf.Tensor, name: string) => tf.Tensor,
): { tap: Tap; edited(): string[]; check(): void } {
  const matches = matcher(which);
  const [changed, everything] = [new Set<string>(), new Set<string>()];
  const tap: Tap = <T extends tf.Tensor>(name: string, x: T): T => {
    everything.add(name);
    if (!matches(name)) return x;
    const [wide, half] = [toFloat32(x), isBfloat16(x)]; // inside a block an activation may be bfloat16; a person sees float32
    const changedTo = change(wide, name);
    const y = half ? (changedTo === wide ? x : toBfloat16(changedTo)) : changedTo;
    if (String(y.shape) !== String(x.shape))
      throw new Error(`edit: "${name}" has shape [${x.shape}], the replacement [${y.shape}]; they must be equal`);
    changed.add(name);
    return y as T;
  };
  const check = () => {
    if (changed.size === 0)
      throw new Error(
        `edit: ${String(which)} met none of the ${everything.size} activations of the run, such as ${sample([...everything])}`,
      );
  };
  return { tap, edited: () => [...changed], check };
}

function matcher(which: RegExp | string | readonly string[]): (name: string) => boolean {
  // A pattern with the flag g or y remembers where it stopped: search() does not.
  if (which instanceof RegExp) return (name) => name.search(which) >= 0;
  const wanted = typeof which === "string" ? [which] : which;
  return (name) => wanted.some((w) => name === w || name.endsWith(`.${w}`));
}

const sample = (names: string[]): string => names.slice(0, 6).join(", ") + (names.length > 6 ? `, … (${names.length} in all)` : "");
