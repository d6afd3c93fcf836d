/**
 * From a config to the inverse frequencies of its rotary position embedding: what transformers' modeling_rope_utils.py computes, for each
 * `rope_type`. Letters: R rotated numbers of each head, θ the base.
 */

/** The keys of a config that matter here, as its file spells them. Older files have `rope_theta` and `rope_scaling`, newer ones `rope_parameters`. */
export type RopeConfig = {
  hidden_size?: number;
  num_attention_heads?: number;
  head_dim?: number | null;
  max_position_embeddings?: number;
  original_max_position_embeddings?: number;
  partial_rotary_factor?: number;
  rope_theta?: number;
  rope_scaling?: RopeScaling | null;
  rope_parameters?: RopeScaling | null;
};

/** `rope_scaling` or `rope_parameters`. */
export type RopeScaling = {
  rope_type?: string;
  /** The older name of `rope_type`. */
  type?: string;
  rope_theta?: number;
  partial_rotary_factor?: number;
  factor?: number | null;
  original_max_position_embeddings?: number;
  attention_factor?: number | null;
  beta_fast?: number | null;
  beta_slow?: number | null;
  mscale?: number | null;
  mscale_all_dim?: number | null;
  truncate?: boolean;
  low_freq_factor?: number;
  high_freq_factor?: number;
  short_factor?: number[];
  long_factor?: number[];
};

export type RotaryParameters = {
  inverseFrequencies: Float32Array; // [R / 2], angle a position
  /** Multiplies sines and cosines. */
  attentionFactor: number;
};

/** A config with its older spellings resolved. */
type Settings = {
  R: number;
  theta: number;
  scaling: RopeScaling;
  /** max_position_embeddings, and that of pre-training where the scaling tells it apart. */
  longest?: number;
  original?: number;
  /** Tokens that are to be told apart, where the scaling depends on it. */
  length?: number;
};

type Scaling = {
  /** Keys that must be there: `factor` also as the ratio of the two lengths, where `ratio` says so. */
  needs: (keyof RopeScaling)[];
  ratio?: boolean;
  compute: (settings: Settings) => RotaryParameters;
};

const f32 = Math.fround;

/** The base where a config gives none: that of Su et al. 2021, and transformers' default. */
const THETA = 10000;

/** θ^(2i / R) in float32, for i below R / 2. */
const periods = (R: number, theta: number): Float32Array =>
  Float32Array.from({ length: Math.ceil(R / 2) }, (_, i) => theta ** f32((2 * i) / R));

const plain = (R: number, theta: number): Float32Array => periods(R, theta).map((period) => 1 / period);

const factorOf = ({ scaling, longest, original }: Settings): number => scaling.factor ?? longest! / original!;

/** NTK-aware: the base grows with the length beyond `max_position_embeddings`. */
function dynamic({ R, theta, scaling, longest, length }: Settings): RotaryParameters {
  const [factor, tokens] = [scaling.factor!, Math.max(length ?? 0, longest!)];
  const base = theta * ((factor * tokens) / longest! - (factor - 1)) ** (R / (R - 2));
  return { inverseFrequencies: plain(R, base), attentionFactor: 1 };
}

/** Llama 3.1: slow frequencies are divided by the factor, fast ones stay, those between go over smoothly. */
function llama3({ R, theta, scaling, original }: Settings): RotaryParameters {
  const { factor, low_freq_factor: low, high_freq_factor: high } = scaling as Required<RopeScaling>;
  const inverseFrequencies = plain(R, theta).map((frequency) => {
    const turns = (original! * frequency) / (2 * Math.PI); // within the length of pre-training
    if (turns < low) return frequency / factor!;
    if (turns > high) return frequency;
    const smooth = (turns - low) / (high - low);
    return ((1 - smooth) * frequency) / factor! + smooth * frequency;
  });
  return { inverseFrequencies, attentionFactor: 1 };
}

/** YaRN (Peng et al. 2023): as llama3's, with a ramp over the index, and sharper attention. */
function yarn(settings: Settings): RotaryParameters {
  const { R, theta, scaling, original } = settings;
  const factor = factorOf(settings);
  const sharpness = (by: number, scale = 1) => (by <= 1 ? 1 : 0.1 * scale * Math.log(by) + 1);
  const { mscale, mscale_all_dim: all } = scaling;
  const attentionFactor =
    scaling.attention_factor ?? (mscale && all ? sharpness(factor, mscale) / sharpness(factor, all) : sharpness(factor));
  // The index whose pair turns so many times within the length of pre-training.
  const indexOf = (turns: number) => (R * Math.log(original! / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const ends = [indexOf(scaling.beta_fast || 32), indexOf(scaling.beta_slow || 1)];
  const whole = scaling.truncate ?? true;
  const low = Math.max(whole ? Math.floor(ends[0]!) : ends[0]!, 0);
  const high = Math.min(whole ? Math.ceil(ends[1]!) : ends[1]!, R - 1);
  const inverseFrequencies = periods(R, theta).map((period, i) => {
    const ramp = Math.min(1, Math.max(0, (i - low) / (low === high ? 0.001 : high - low)));
    return ramp / (factor * period) + (1 - ramp) / period;
  });
  return { inverseFrequencies, attentionFactor };
}

/** LongRoPE (Ding et al. 2024): a divisor of its own for each frequency, one set for short and one for long texts. */
function longrope(settings: Settings): RotaryParameters {
  const { R, theta, scaling, original, length } = settings;
  const factor = factorOf(settings);
  const attentionFactor = scaling.attention_factor ?? (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original!)));
  const divisors = (length ?? 0) > original! ? scaling.long_factor! : scaling.short_factor!;
  return { inverseFrequencies: periods(R, theta).map((period, i) => 1 / (divisors[i]! * period)), attentionFactor };
}

const scalings: { [type: string]: Scaling } = {
  default: { needs: [], compute: ({ R, theta }) => ({ inverseFrequencies: plain(R, theta), attentionFactor: 1 }) },
  linear: {
    needs: ["factor"],
    compute: ({ R, theta, scaling }) => ({ inverseFrequencies: plain(R, theta).map((f) => f / scaling.factor!), attentionFactor: 1 }),
  },
  dynamic: { needs: ["factor"], compute: dynamic },
  llama3: { needs: ["factor", "low_freq_factor", "high_freq_factor"], compute: llama3 },
  yarn: { needs: ["factor"], ratio: true, compute: yarn },
  longrope: { needs: ["factor", "short_factor", "long_factor"], ratio: true, compute: longrope },
};

/**
 * Inverse frequencies and attention factor of a config.
 * @param length tokens that are to be told apart; only `dynamic` and `longrope` ask for it. Default: not more than the model was trained for.
 * @throws RangeError naming an unknown `rope_type` and those there are, or every key that is missing.
 */
export function rotaryParameters(config: RopeConfig, length?: number): RotaryParameters {
  const scaling = { ...config.rope_scaling, ...config.rope_parameters };
  const type = scaling.rope_type ?? scaling.type ?? "default";
  if (!Object.hasOwn(scalings, type)) throw new RangeError(`rope_type "${type}" is not known; known: ${Object.keys(scalings).join(", ")}`);
  const { needs, ratio, compute } = scalings[type]!;
  const longest = config.max_position_embeddings;
  const original = config.original_max_position_embeddings ?? scaling.original_max_position_embeddings ?? longest;
  const theta = scaling.rope_theta ?? config.rope_theta ?? THETA;
  const dh = config.head_dim ?? config.hidden_size! / config.num_attention_heads!;
  const R = Math.trunc(dh * (scaling.partial_rotary_factor ?? config.partial_rotary_factor ?? 1));

  const found = scaling as { [key: string]: unknown };
  const missing: string[] = needs
    .filter((key) => found[key] === undefined || found[key] === null)
    .filter((key) => !(ratio && key === "factor"));
  if (Number.isNaN(dh)) missing.push("head_dim, or hidden_size and num_attention_heads");
  if (original === undefined && type !== "default" && type !== "linear") missing.push("max_position_embeddings");
  else if (longest === undefined && (type === "dynamic" || (ratio && !scaling.factor))) missing.push("max_position_embeddings");
  for (const key of ["short_factor", "long_factor"] as const)
    if (type === "longrope" && scaling[key] && scaling[key].length !== Math.ceil(R / 2))
      missing.push(`${key} of ${Math.ceil(R / 2)} numbers (it has ${scaling[key].length})`);
  if (missing.length) throw new RangeError(`rope_type "${type}" misses ${missing.join("; ")}`);
  return compute({ R, theta, scaling, longest, original, length });
}
