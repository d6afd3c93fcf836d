/**
 * LoRA as a change of parameter trees: `withLora` gives the same model with low-rank additions at the modules that a pattern names, sharing
 * every base tensor. Options, defaults, matching and scaling are PEFT's (peft/tuners/lora/config.py, peft/tuners/tuners_utils.py).
 */
import { hasBfloat16, toFloat32 } from "../engine/bfloat16";
import { frozenWeight, isFrozen } from "../engine/frozen";
import { tf } from "../engine/tf";
import { nearest } from "../files/nearest";
import { random } from "../data/random";
import type { Linear, Lora } from "./layers";
import { rowNorms } from "./ops";
import { follow, leaves } from "./spec";

export type LoraOptions = {
  /**
   * Module names as a list (`["q_proj", "v_proj"]`: the last parts of a path), a regular expression for the whole path, or "all-linear": every
   * linear layer, and no convolution.
   */
  targetModules: string | readonly string[];
  /** Modules to leave out, in the same forms. */
  excludeModules?: string | readonly string[];
  /** Rank of the update; default 8. */
  r?: number;
  /** The update is scaled by loraAlpha / r; default 8. */
  loraAlpha?: number;
  /** Probability of dropping an input of A while training; default 0. */
  loraDropout?: number;
  /** Scale by loraAlpha / sqrt(r) instead (Kalajdzievski 2023). */
  useRslora?: boolean;
  /** Learn the norm of each row apart from its direction (DoRA, Liu et al. 2024). */
  useDora?: boolean;
  /** Seed of A's first values and of the dropout. */
  seed?: number;
};

/** What can carry an adapter: any loaded model. */
export type Adaptable = {
  spec: unknown;
  params: unknown;
  modelType: string;
  folder: string;
  /** What a module of the weight file is called in transformers, and so in PEFT's adapters, where that differs from the file. */
  moduleName?(name: string): string;
  with(params: never): unknown;
};

/** One adapted module. */
export type AdapterModule = {
  /** Its path as PEFT has it: that of the file's tensor names, `vision_model.encoder.layers.0.self_attn.q_proj`, or transformers' own. */
  name: string;
  /** The way to its `Linear` in the parameter tree. */
  path: (string | number)[];
  /** Shape of the weight in the file; four numbers for a convolution. */
  shape: number[];
  A: tf.Variable<tf.Rank.R2>; // [r, in]
  B: tf.Variable<tf.Rank.R2>; // [out, r]
  magnitude?: tf.Variable<tf.Rank.R1>; // [out]
  scale: number;
};

export type Adapter = {
  options: Required<LoraOptions>;
  modules: AdapterModule[];
  /** What an optimiser updates, in a fixed order. */
  variables: tf.Variable[];
  /** Turns dropout on (while training) or off. */
  training(on: boolean): void;
  dispose(): void;
};

const DEFAULTS = { excludeModules: [] as readonly string[], r: 8, loraAlpha: 8, loraDropout: 0, useRslora: false, useDora: false, seed: 0 };

/**
 * Attaches new adapters: A random (Kaiming uniform), B zero, so that the model computes the same until it is trained.
 *
 * @returns the adapted model (the base model is unchanged and shares its tensors) and the adapter
 * @throws when a name or pattern matches no module, or matches one that is not a linear layer or patch convolution
 */
export function withLora<M extends Adaptable>(model: M, options: LoraOptions): { model: M; adapter: Adapter } {
  const full = checkOptions(options);
  const draw = random(full.seed);
  const modules = matchModules(model, full).map(({ name, path, shape }) => {
    const base = follow(model.params, path) as Linear;
    const [out, inner] = base.weight.shape;
    const bound = 1 / Math.sqrt(inner);
    const values = Float32Array.from({ length: full.r * inner }, () => (2 * draw() - 1) * bound);
    return makeModule(base, {
      name,
      path,
      shape,
      A: tf.tensor2d(values, [full.r, inner]),
      B: tf.zeros([out, full.r]) as tf.Tensor2D,
      scale: scaleOf(full),
      dora: full.useDora,
    });
  });
  return attach(model, modules, full);
}

/** lora_alpha / r, or with rsLoRA lora_alpha / sqrt(r). */
export const scaleOf = ({ loraAlpha, r, useRslora }: { loraAlpha: number; r: number; useRslora: boolean }): number =>
  loraAlpha / (useRslora ? Math.sqrt(r) : r);

/** A module's variables from first values, which are disposed. Without `magnitude`, DoRA starts from the norms of W. */
export function makeModule(
  base: Linear,
  m: {
    name: string;
    path: (string | number)[];
    shape: number[];
    A: tf.Tensor2D;
    B: tf.Tensor2D;
    scale: number;
    dora: boolean;
    magnitude?: tf.Tensor1D;
  },
): AdapterModule {
  const variable = <T extends tf.Tensor>(x: T): T => {
    const made = tf.variable(x, true);
    x.dispose();
    return made as unknown as T;
  };
  const [A, B] = [variable(m.A) as unknown as tf.Variable<tf.Rank.R2>, variable(m.B) as unknown as tf.Variable<tf.Rank.R2>];
  const norms = m.dora ? (m.magnitude ?? tf.tidy(() => rowNorms(base.weight, A, B, m.scale))) : undefined;
  const magnitude = norms && (variable(norms) as unknown as tf.Variable<tf.Rank.R1>);
  return { name: m.name, path: m.path, shape: m.shape, A, B, scale: m.scale, magnitude };
}

/** The model with the modules' additions in its tree. */
export function attach<M extends Adaptable>(
  model: M,
  modules: AdapterModule[],
  options: Required<LoraOptions>,
): { model: M; adapter: Adapter } {
  const state = { training: false };
  const seeds = random(options.seed + 1);
  const dropping = () => state.training && options.loraDropout > 0;
  const drop = (x: tf.Tensor) => (dropping() ? tf.dropout(x, options.loraDropout, undefined, Math.floor(seeds() * 2 ** 31)) : x);
  const params = modules.reduce(
    (tree, { path, A, B, magnitude, scale }) =>
      replaceAt(tree, path, (node) => ({ ...(node as Linear), lora: { A, B, scale, drop, dropping, magnitude } satisfies Lora })),
    model.params,
  );
  const variables = modules.flatMap(({ A, B, magnitude }) => (magnitude ? [A, B, magnitude] : [A, B])) as tf.Variable[];
  const adapter: Adapter = {
    options,
    modules,
    variables,
    training: (on) => {
      state.training = on;
    },
    dispose: () => variables.forEach((v) => v.dispose()),
  };
  return { model: model.with(params as never) as M, adapter };
}

/** The tree with the node at `path` replaced; everything off the path is shared. */
function replaceAt(tree: unknown, path: (string | number)[], change: (node: unknown) => unknown): unknown {
  if (path.length === 0) return change(tree);
  const [key, ...rest] = path;
  const child = replaceAt((tree as Record<string | number, unknown>)[key], rest, change);
  if (Array.isArray(tree)) return tree.map((item, i) => (i === key ? child : item));
  return { ...(tree as object), [key]: child };
}

/**
 * The model with each adapter added into its weight (in the weight's dtype; one in int8 or NF4 is widened to bfloat16, or to float32 where the
 * backend has no bfloat16, for rounding the sum to so few bits again would lose what the adapter has learned), so that it needs no adapter any more. Weights without an adapter are shared
 * with the base model; `disposeMerged` frees only the new ones.
 */
export function mergeLora<M extends Adaptable>(model: M): { model: M; disposeMerged(): void } {
  const made: tf.Tensor[] = [];
  const params = linearPaths(model).reduce((tree, { path }) => {
    const p = follow(tree, path) as Linear;
    if (!p.lora) return tree;
    const weight = tf.keep(tf.tidy(() => mergedWeight(p)));
    made.push(weight);
    return replaceAt(tree, path, () => ({ ...p, weight, lora: undefined }));
  }, model.params);
  if (made.length === 0) throw new Error("mergeLora: this model carries no adapter; attach one with withLora or loadAdapter");
  return { model: model.with(params as never) as M, disposeMerged: () => tf.dispose(made) };
}

function mergedWeight({ weight, lora }: Linear): tf.Tensor2D {
  const { A, B, scale, magnitude } = lora!;
  const sum = toFloat32(weight).add(tf.matMul(B, A).mul(scale));
  const merged = magnitude ? sum.mul(magnitude.div(rowNorms(weight, A, B, scale)).expandDims(1)) : sum;
  return (isFrozen(weight) && hasBfloat16() ? frozenWeight(merged as tf.Tensor2D) : merged) as tf.Tensor2D;
}

function checkOptions(options: LoraOptions): Required<LoraOptions> {
  const known = ["targetModules", ...Object.keys(DEFAULTS)];
  for (const key of Object.keys(options))
    if (!known.includes(key))
      throw new Error(`withLora: unknown option "${key}"${nearest(key, known) ? `; did you mean "${nearest(key, known)}"?` : ""}`);
  const full = { ...DEFAULTS, ...options };
  const problems: string[] = [];
  if (!full.targetModules?.length) problems.push('targetModules is empty; name modules such as ["q_proj", "v_proj"]');
  if (!Number.isInteger(full.r) || full.r < 1) problems.push(`r is ${full.r}, expected a whole number of at least 1`);
  if (!Number.isFinite(full.loraAlpha)) problems.push(`loraAlpha is ${full.loraAlpha}, expected a number`);
  if (!(full.loraDropout >= 0 && full.loraDropout < 1)) problems.push(`loraDropout is ${full.loraDropout}, expected 0 <= loraDropout < 1`);
  if (problems.length) throw new Error(`withLora: ${problems.join("; ")}`);
  return full;
}

/** name: as PEFT has it; file: as the weight file has it. */
type Module = { name: string; file: string; path: (string | number)[]; shape: number[]; linear: boolean };
type Named = Pick<Adaptable, "spec" | "moduleName">;

/** Every module that has a weight: its path, and whether LoRA can adapt it. */
function moduleNames({ spec, moduleName = (name) => name }: Named): Module[] {
  return leaves(spec)
    .filter(({ spec: leaf }) => leaf.name.endsWith(".weight"))
    .map(({ spec: leaf, path }) => ({
      name: moduleName(leaf.name.slice(0, -".weight".length)),
      file: leaf.name.slice(0, -".weight".length),
      path: path.slice(0, -1),
      shape: leaf.shape,
      linear: leaf.product === true,
    }));
}

/** The linear layers and patch convolutions of a model, by their module paths. */
export const linearPaths = (model: Named) => moduleNames(model).filter((m) => m.linear);

type Targets = { targetModules: LoraOptions["targetModules"]; excludeModules: NonNullable<LoraOptions["excludeModules"]> };

/** The modules that the options name, whatever their kind. */
export function targetsOf(model: Named, { targetModules, excludeModules }: Targets) {
  const wanted = matcher(targetModules, "targetModules");
  const left = excludeModules.length ? matcher(excludeModules, "excludeModules") : () => false;
  const chosen = (m: { name: string; shape: number[]; linear: boolean }) =>
    targetModules === "all-linear" ? m.linear && m.shape.length === 2 : wanted(m.name);
  return moduleNames(model).filter((m) => chosen(m) && !left(m.name));
}

function matchModules(model: Named, options: Required<LoraOptions>) {
  const { targetModules } = options;
  const all = moduleNames(model);
  const matched = targetsOf(model, options);
  const endings = [...new Set(linearPaths(model).map((m) => m.name.split(".").pop()!))];
  const silent = typeof targetModules === "string" ? [] : targetModules.filter((t) => !all.some((m) => endsWith(m.name, t)));
  if (matched.length === 0 || silent.length)
    throw new Error(
      `withLora: ${silent.length ? silent.map((s) => `"${s}"`).join(", ") : `"${targetModules}"`} matches no module; this model's linear layers end in ${endings.join(", ")} ` +
        `(a string is a regular expression for the whole path, such as "${all.find((m) => m.linear)?.name}")`,
    );
  const wrong = matched.filter((m) => !m.linear);
  if (wrong.length)
    throw new Error(`withLora: only linear layers and patch convolutions can be adapted, not ${wrong.map((m) => m.name).join(", ")}`);
  return matched;
}

const endsWith = (name: string, target: string): boolean => name === target || name.endsWith(`.${target}`);

function matcher(which: string | readonly string[], option: string): (name: string) => boolean {
  if (typeof which !== "string") return (name) => which.some((target) => endsWith(name, target));
  try {
    const pattern = new RegExp(`^(?:${which})$`);
    return (name) => pattern.test(name);
  } catch (error) {
    throw new Error(`withLora: ${option} "${which}" is not a regular expression: ${(error as Error).message}`);
  }
}
