/**
 * Weights that bitsandbytes has stored in NF4 (bitsandbytes/functional.py, QuantState.as_dict, as transformers writes them): instead of a matrix the
 * file holds its codes, their scales, and a note of its shape. Here such a group of tensors becomes one again.
 */
import { type Format, GROUP, LEVELS, NESTED, nf4Bytes } from "../engine/quantised-format";
import { elements, type TensorSource, toFloat32 } from "./dtype";

const STATE = ".quant_state.bitsandbytes__";
/** Misfits shown in one error. */
const SHOWN = 20;

/** What quant_state says of a weight. */
type State = { quant_type: string; blocksize: number; shape: number[]; nested_blocksize?: number; nested_offset?: number };

/**
 * The tensors of a checkpoint with each NF4 weight of bitsandbytes as one tensor of its own shape: `read()` gives the numbers that it stands for, in
 * float32, `nf4()` its bytes as the engine keeps them, bit for bit. Other tensors, and checkpoints without any, come back as they are.
 *
 * @throws Error listing every weight whose parts are missing or do not fit, and those in FP4, which is another format
 */
export function readBitsandbytes(tensors: Map<string, TensorSource>): Map<string, TensorSource> {
  const states = [...tensors.keys()].filter((name) => name.includes(STATE));
  if (states.length === 0) return tensors;
  const [result, problems] = [new Map(tensors), [] as string[]];
  for (const name of states) {
    const weight = name.slice(0, name.indexOf(STATE));
    const parts = new Map([...PARTS, name.slice(weight.length)].map((part) => [part, tensors.get(weight + part)]));
    try {
      const source = nf4Source(weight, parts as Map<string, TensorSource | undefined>, tensors.get(name)!);
      for (const part of parts.keys()) result.delete(weight + part);
      result.set(weight, source);
    } catch (error) {
      problems.push(`  ${weight}: ${(error as Error).message}`);
    }
  }
  if (problems.length === 0) return result;
  const more = problems.length > SHOWN ? `\n  … and ${problems.length - SHOWN} more` : "";
  const { file } = tensors.get(states[0]!)!;
  throw new Error(`${file}: weights that bitsandbytes stored in 4 bits cannot be read:\n${problems.slice(0, SHOWN).join("\n")}${more}`);
}

/** What stands beside a weight, by the end of its name; the nested two where the scales are quantised too. */
const PARTS = ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"] as const;

function nf4Source(name: string, parts: Map<string, TensorSource | undefined>, note: TensorSource): TensorSource {
  const state = readState(note);
  const size = elements(state.shape);
  const groups = Math.ceil(size / state.blocksize);
  const nested = state.nested_blocksize !== undefined;
  const part = (end: (typeof PARTS)[number], bytes: number): TensorSource => {
    const source = parts.get(end);
    if (!source) throw new Error(`${name}${end} is missing`);
    if (source.byteLength !== bytes)
      throw new Error(
        `${name}${end} has ${source.byteLength} bytes, expected ${bytes} for [${state.shape}] in blocks of ${state.blocksize}`,
      );
    return source;
  };
  const weight = part("", Math.ceil(size / 2)); // of any dtype: quant_storage names it, the bytes are the same
  const levels = toFloat32(part(".quant_map", 64));
  if (levels.some((level, i) => level !== LEVELS[i])) throw new Error(`${name}.quant_map is not the code book of NF4`);
  const absmax = part(".absmax", nested ? groups : 4 * groups);
  const second = nested && {
    largest: part(".nested_absmax", 4 * Math.ceil(groups / state.nested_blocksize!)),
    map: part(".nested_quant_map", 1024),
  };

  /** One scale for each block of the file. */
  const scales = (): Float32Array => {
    if (!second) return toFloat32(absmax);
    const [codes, largest, map, offset] = [absmax.read(), toFloat32(second.largest), toFloat32(second.map), state.nested_offset!];
    const every = state.nested_blocksize!;
    return Float32Array.from(codes, (code, i) => Math.fround(map[code]! * largest[Math.floor(i / every)]!) + offset);
  };
  const read = (): Uint8Array => {
    const [codes, scale, values] = [weight.read(), scales(), new Float32Array(size)];
    for (let i = 0; i < size; i++)
      values[i] = LEVELS[i % 2 ? codes[i >> 1]! & 15 : codes[i >> 1]! >> 4]! * scale[Math.floor(i / state.blocksize)]!;
    return new Uint8Array(values.buffer);
  };
  const nf4 = (): { bytes: Uint8Array; format: Exclude<Format, "int8"> } => {
    const [shape, codes] = [state.shape as [number, number], weight.read()];
    if (second && state.blocksize === GROUP && state.nested_blocksize === NESTED) {
      const again = { codes: absmax.read(), largest: toFloat32(second.largest), map: toFloat32(second.map), offset: state.nested_offset! };
      return { bytes: nf4Bytes(shape, codes, again), format: "nf4-double" };
    }
    const [scale, times] = [scales(), state.blocksize / GROUP]; // larger blocks: the same scale for several of ours
    const spread = Float32Array.from({ length: Math.ceil(size / GROUP) }, (_, i) => scale[Math.floor(i / times)]!);
    return { bytes: nf4Bytes(shape, codes, spread), format: "nf4" };
  };
  return { name, dtype: "F32", shape: state.shape, byteLength: 4 * size, file: weight.file, read, nf4 };
}

function readState(note: TensorSource): State {
  const { quant_type, blocksize, shape, nested_blocksize, nested_offset } = JSON.parse(new TextDecoder().decode(note.read())) as State;
  if (quant_type !== "nf4") throw new Error(`stored as ${JSON.stringify(quant_type)}; only "nf4" is read here`);
  const problems: string[] = [];
  const power = (x: unknown) => Number.isInteger(x) && (x as number) >= GROUP && Number.isInteger(Math.log2(x as number));
  if (!power(blocksize)) problems.push(`blocksize ${blocksize}, expected a power of 2 from ${GROUP} on`);
  if (!Array.isArray(shape) || shape.length !== 2) problems.push(`shape ${JSON.stringify(shape)}, expected [out, in]`);
  if (nested_blocksize !== undefined && !power(nested_blocksize))
    problems.push(`nested_blocksize ${nested_blocksize}, expected a power of 2`);
  if (nested_blocksize !== undefined && !Number.isFinite(nested_offset)) problems.push(`nested_offset ${nested_offset}, expected a number`);
  if (problems.length) throw new Error(`quant_state has ${problems.join("; ")}`);
  return { quant_type, blocksize, shape, nested_blocksize, nested_offset: nested_offset && Math.fround(nested_offset) };
}
