/** Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, readable by PEFT and back (peft/utils/save_and_load.py). */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { tf } from "../engine/tf";
import { writeFileAtomic } from "../files/atomic";
import { readJson } from "../files/checkpoint";
import { openSafetensors, saveSafetensors, type TensorSource, toFloat32 } from "../files/safetensors";
import type { Linear } from "./layers";
import {
  type Adaptable,
  type Adapter,
  type AdapterModule,
  attach,
  linearPaths,
  type LoraOptions,
  makeModule,
  scaleOf,
  targetsOf,
} from "./lora";
import { follow } from "./spec";

const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";
/** What PEFT puts before every module path: its own wrapper, then the tuner's. */
const PREFIX = "base_model.model.";
const PARTS = { A: "lora_A.weight", B: "lora_B.weight", magnitude: "lora_magnitude_vector" } as const;

/** Options of a PEFT config that change the computation and that Vitrine does not have. */
const MUST_BE_OFF =
  `bias fan_in_fan_out modules_to_save layer_replication lora_bias use_qalora use_bdlora trainable_token_indices target_parameters
  alora_invocation_tokens arrow_config megatron_config velora_config kasa_config monteclora_config`.split(/\s+/);
/** First values that leave the base weights alone; the others (pissa, olora, corda, loftq …) change them, and PEFT does so again on loading. */
const KEEPS_BASE: unknown[] = [undefined, null, true, false, "gaussian", "eva", "orthogonal", "lora_ga"];

const isOff = (value: unknown): boolean =>
  value === undefined ||
  value === null ||
  value === false ||
  value === "none" ||
  (typeof value === "object" && Object.keys(value).length === 0);

/** Saves an adapter where PEFT's `PeftModel.from_pretrained(base, folder)` finds it. Each file is replaced as a whole or not at all. */
export async function saveAdapter(model: Adaptable, adapter: Adapter, folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const tensors = [];
  for (const module of adapter.modules) tensors.push(...(await moduleTensors(module)));
  await saveSafetensors(join(folder, WEIGHTS), tensors, { format: "pt" });
  await writeFileAtomic(join(folder, CONFIG), `${JSON.stringify(peftConfig(model, adapter), null, 2)}\n`);
}

async function moduleTensors({ name, shape, A, B, magnitude }: AdapterModule) {
  const [out, ...inner] = shape;
  const r = A.shape[0];
  const conv = inner.length === 3;
  const entry = async (part: keyof typeof PARTS, x: tf.Tensor, size: number[]) => {
    const values = (await x.data()) as Float32Array;
    return {
      name: `${PREFIX}${name}.${PARTS[part]}`,
      dtype: "F32" as const,
      shape: size,
      data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
    };
  };
  const entries = [await entry("A", A, [r, ...inner]), await entry("B", B, conv ? [out, r, 1, 1] : [out, r])];
  return magnitude ? [...entries, await entry("magnitude", magnitude, conv ? [1, out, 1, 1] : [out])] : entries;
}

function peftConfig(model: Adaptable, { options, modules }: Adapter): object {
  const { r, loraAlpha, useRslora } = options;
  const ownRank = modules.filter((m) => m.A.shape[0] !== r);
  const ownScale = modules.filter((m) => m.scale !== scaleOf({ loraAlpha, r: m.A.shape[0], useRslora }));
  const alphaOf = ({ scale, A }: AdapterModule) => scale / scaleOf({ loraAlpha: 1, r: A.shape[0], useRslora });
  // Names in full where the options do not say exactly which modules carry an adapter ("all-linear" depends on the reader).
  const said =
    options.targetModules !== "all-linear" && String(targetsOf(model, options).map((m) => m.name)) === String(modules.map((m) => m.name));
  const names = (which: string | readonly string[]) => (typeof which === "string" ? which : [...which].sort());
  return {
    peft_type: "LORA",
    auto_mapping: null,
    base_model_name_or_path: model.folder,
    task_type: null,
    inference_mode: true,
    r: options.r,
    lora_alpha: options.loraAlpha,
    lora_dropout: options.loraDropout,
    target_modules: said ? names(options.targetModules) : modules.map((m) => m.name),
    exclude_modules: options.excludeModules.length ? names(options.excludeModules) : null,
    use_rslora: options.useRslora,
    use_dora: options.useDora,
    bias: "none",
    fan_in_fan_out: false,
    init_lora_weights: true,
    modules_to_save: null,
    rank_pattern: Object.fromEntries(ownRank.map((m) => [escaped(m.name), m.A.shape[0]])),
    alpha_pattern: Object.fromEntries(ownScale.map((m) => [escaped(m.name), alphaOf(m)])),
    layers_to_transform: null,
    layers_pattern: null,
  };
}

const escaped = (name: string): string => name.replaceAll(".", "\\.");

/**
 * Attaches a saved adapter to its base model.
 * @throws when the folder is no LoRA adapter, asks for something that Vitrine does not compute, or does not fit the model: all misfits at once
 */
export function loadAdapter<M extends Adaptable>(model: M, folder: string): { model: M; adapter: Adapter } {
  const config = readJson(join(folder, CONFIG)) as { [key: string]: unknown };
  checkSupported(config, folder);
  const options: Required<LoraOptions> = {
    targetModules: config.target_modules as string | string[],
    excludeModules: (config.exclude_modules as string | string[] | null) ?? [],
    r: config.r as number,
    loraAlpha: config.lora_alpha as number,
    loraDropout: (config.lora_dropout as number) ?? 0,
    useRslora: (config.use_rslora as boolean) ?? false,
    useDora: (config.use_dora as boolean) ?? false,
    seed: 0,
  };
  const file = openSafetensors(join(folder, WEIGHTS));
  try {
    const pieces = sortPieces(model, file.tensors, options, config, folder);
    const modules = pieces.map(({ target, A, B, magnitude }) => {
      const base = follow(model.params, target.path) as Linear;
      const [out, inner] = base.weight.shape;
      const r = A.shape[0];
      const scale = scaleOf({
        r,
        loraAlpha: pattern(config.alpha_pattern, target.name) ?? options.loraAlpha,
        useRslora: options.useRslora,
      });
      const tensor = (source: TensorSource, shape: number[]) => tf.tensor(toFloat32(source), shape);
      return makeModule(base, {
        ...target,
        scale,
        dora: options.useDora,
        A: tensor(A, [r, inner]) as tf.Tensor2D,
        B: tensor(B, [out, r]) as tf.Tensor2D,
        magnitude: magnitude && (tensor(magnitude, [out]) as tf.Tensor1D),
      });
    });
    return attach(model, modules, options);
  } finally {
    file.close();
  }
}

function checkSupported(config: { [key: string]: unknown }, folder: string): void {
  if (config.peft_type !== "LORA")
    throw new Error(`${folder}/${CONFIG}: peft_type is ${JSON.stringify(config.peft_type)}; only "LORA" can be loaded`);
  const problems = MUST_BE_OFF.filter((key) => !isOff(config[key])).map(
    (key) => `  ${key} is ${JSON.stringify(config[key])}; only a config without it is computed here`,
  );
  if (!KEEPS_BASE.includes(config.init_lora_weights))
    problems.push(
      `  init_lora_weights is ${JSON.stringify(config.init_lora_weights)}, which changes the base weights; convert the adapter with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)`,
    );
  const { r, lora_alpha: alpha, target_modules: targets } = config;
  if (!Number.isInteger(r) || (r as number) < 1) problems.push(`  r is ${JSON.stringify(r)}; expected a whole number of at least 1`);
  if (!Number.isFinite(alpha)) problems.push(`  lora_alpha is ${JSON.stringify(alpha)}; expected a number`);
  if (typeof targets !== "string" && !(Array.isArray(targets) && targets.every((t) => typeof t === "string")))
    problems.push(`  target_modules is ${JSON.stringify(targets)}; expected names or a regular expression`);
  if (problems.length) throw new Error(`${folder}/${CONFIG} cannot be used:\n${problems.join("\n")}`);
}

/** PEFT's rank_pattern and alpha_pattern: a key fits when it is the end of the module's path, or a regular expression for it. */
function pattern(patterns: unknown, name: string): number | undefined {
  for (const [key, value] of Object.entries((patterns ?? {}) as { [key: string]: number }))
    if (new RegExp(`^(?:.*\\.)?(?:${key})$`).test(name)) return value;
  return undefined;
}

type Piece = { target: ReturnType<typeof linearPaths>[number]; A: TensorSource; B: TensorSource; magnitude?: TensorSource };

/** The file's tensors by module, every misfit reported at once. */
function sortPieces(
  model: Adaptable,
  tensors: Map<string, TensorSource>,
  options: Required<LoraOptions>,
  config: { [key: string]: unknown },
  folder: string,
): Piece[] {
  const problems: string[] = [];
  const layers = linearPaths(model);
  const targets = new Map(layers.map((t) => [t.name, t]));
  const older = new Map(layers.map((t) => [t.file, t.name])); // adapters trained before transformers 4.52 have the paths of the file
  const found = new Map<string, Partial<Record<keyof typeof PARTS, TensorSource>>>();
  for (const [key, source] of tensors) {
    const part = (Object.keys(PARTS) as (keyof typeof PARTS)[]).find((p) => key.endsWith(`.${PARTS[p]}`));
    const path = part && key.startsWith(PREFIX) ? key.slice(PREFIX.length, -PARTS[part].length - 1) : undefined;
    const name = path !== undefined && !targets.has(path) ? (older.get(path) ?? path) : path;
    if (!part || name === undefined) problems.push(`  unexpected   ${key}`);
    else if (!targets.has(name)) problems.push(`  no such layer ${name} in a ${model.modelType} model (${key})`);
    else found.set(name, { ...found.get(name), [part]: source });
  }
  const pieces: Piece[] = [];
  for (const [name, { A, B, magnitude }] of found) {
    const target = targets.get(name)!;
    const rank = pattern(config.rank_pattern, name) ?? options.r;
    problems.push(...pieceMisfits(target, { A, B, magnitude }, rank, options));
    if (A && B) pieces.push({ target, A, B, magnitude });
  }
  if (config.layers_to_transform === undefined || config.layers_to_transform === null)
    for (const { name } of targetsOf(model, options))
      if (targets.has(name) && !found.has(name))
        problems.push(`  missing      ${PREFIX}${name}.${PARTS.A} and ${PARTS.B} (target_modules names it)`);
  if (found.size === 0) problems.push("  it holds no lora_A and lora_B");
  if (problems.length) throw new Error(`${folder}/${WEIGHTS} does not fit ${model.folder}:\n${problems.slice(0, 40).join("\n")}`);
  return pieces;
}

function pieceMisfits(
  { name, shape }: Piece["target"],
  { A, B, magnitude }: Partial<Piece>,
  rank: number,
  options: Required<LoraOptions>,
): string[] {
  const problems: string[] = [];
  const [out, ...inner] = shape;
  const conv = inner.length === 3;
  const wanted = { A: [rank, ...inner], B: conv ? [out, rank, 1, 1] : [out, rank], magnitude: conv ? [1, out, 1, 1] : [out] };
  for (const [part, source] of Object.entries({ A, B, ...(options.useDora || magnitude ? { magnitude } : {}) })) {
    const key = part as keyof typeof PARTS;
    if (!source) problems.push(`  missing      ${PREFIX}${name}.${PARTS[key]}`);
    else if (key === "magnitude" && !options.useDora) problems.push(`  unexpected   ${source.name} (use_dora is not true)`);
    else if (String(source.shape) !== String(wanted[key]))
      problems.push(`  wrong shape  ${source.name}: file [${source.shape}], model and config [${wanted[key]}]`);
  }
  return problems;
}
