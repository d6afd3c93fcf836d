/** From measurements to rows, a table and the JSON file. Pure functions. */
import type { Device } from "./device";
import type { Limits } from "./limits";
import type { BenchDtype } from "./options";
import type { Profile } from "./profile";
import type { Workload } from "./work";

/** What one process of either side prints: the seconds of its repetitions, items a second, and its peak memory in MiB. */
export type Result = {
  workload: Workload;
  dtype: BenchDtype;
  seconds: number[];
  rate: number;
  unit: string;
  peak_rss_mb: number;
  profile?: Profile;
};

/** Both sides of one round, measured one after the other, and the second peer where it takes part. */
export type Round = { peer: Result; ours: Result; onnx?: Result };

/** What ours is compared with. */
const AGAINST = { peer: "PyTorch", onnx: "onnxruntime-node" } as const;
type Other = keyof typeof AGAINST;

export type Row = {
  workload: Workload;
  dtype: BenchDtype;
  /** Whose rate and memory `peer` is. */
  against: (typeof AGAINST)[Other];
  /** Rates: items a second, from the median over all repetitions of all rounds. */
  ours: number;
  peer: number;
  unit: string;
  /** Our rate / the peer's. */
  speedup: number;
  /** The least and the largest ratio of a single round. */
  speedupRange: [number, number];
  /** Peak of the whole process, the largest of the rounds, MiB. */
  oursRssMb: number;
  peerRssMb: number;
  /** Our peak / the peer's. */
  memory: number;
  /** Share of the machine's limit that ours reaches: of its best product, or for `load` of its memory reads. */
  limitShare: number;
};

/** The middle value; of an even count the mean of the middle two. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** The rounds of one workload and dtype as a row. `shareOf`: seconds of one repetition -> share of the machine's limit. */
export function toRow(rounds: readonly Round[], shareOf: (seconds: number) => number, other: Other = "peer"): Row {
  const { workload, dtype, unit } = rounds[0].ours;
  const side = (name: "ours" | Other) => {
    const all = rounds.map((round) => round[name] as Result);
    const seconds = median(all.flatMap((result) => result.seconds));
    // rate x median seconds is the number of items in a repetition, which the side itself counted.
    const items = Math.round(all[0].rate * median(all[0].seconds));
    return {
      seconds,
      rate: items / seconds,
      rss: Math.max(...all.map((result) => result.peak_rss_mb)),
      medians: all.map((r) => median(r.seconds)),
    };
  };
  const [ours, peer] = [side("ours"), side(other)];
  const ratios = peer.medians.map((seconds, i) => seconds / ours.medians[i]);
  return {
    workload,
    dtype,
    against: AGAINST[other],
    ours: ours.rate,
    peer: peer.rate,
    unit,
    speedup: ours.rate / peer.rate,
    speedupRange: [Math.min(...ratios), Math.max(...ratios)],
    oursRssMb: ours.rss,
    peerRssMb: peer.rss,
    memory: ours.rss / peer.rss,
    limitShare: shareOf(ours.seconds),
  };
}

const HEADER = ["workload", "dtype", "against", "ours", "peer", "unit", "speedup (range)", "ours MB", "peer MB", "memory", "of the limit"];

/** The rows as cells, the header first. */
export function cells(rows: readonly Row[]): string[][] {
  const times = (x: number) => `${x.toFixed(2)}x`;
  return [
    HEADER,
    ...rows.map((r) => [
      r.workload,
      r.dtype,
      r.against,
      rate(r.ours),
      rate(r.peer),
      r.unit,
      `${times(r.speedup)} (${times(r.speedupRange[0])}-${times(r.speedupRange[1])})`,
      String(r.oursRssMb),
      String(r.peerRssMb),
      times(r.memory),
      `${Math.round(100 * r.limitShare)} %`,
    ]),
  ];
}

/** Three digits. */
const rate = (x: number): string => (x >= 1000 ? Math.round(x).toString() : x.toPrecision(3));

export type Machine = {
  processor: string;
  /** Instructions that decide the ratios. */
  instructions: string[];
  cores: number;
  /** Of each side. */
  threads: number;
  device: Device;
  memoryGb: number;
  limits: Limits;
  versions: Record<string, string>;
};

/** Two lines that stand above every table: a ratio means nothing without its processor. */
export function machineLines({ processor, instructions, cores, threads, device, memoryGb, limits, versions }: Machine): string {
  const gflops = (x: number) => `${Math.round(x / 1e9)} GFLOP/s`;
  return [
    `${processor}${instructions.length ? ` (${instructions.join(", ")})` : ""}, ${cores} cores, ${threads} threads each side${device === "gpu" ? ", both on the GPU" : ""}, ${memoryGb} GB;  ${Object.entries(
      versions,
    )
      .map(([name, version]) => `${name} ${version}`)
      .join(", ")}`,
    `limits: ${gflops(limits.float32)} float32, ${gflops(limits.bfloat16)} bfloat16 (best large product of either side), ${(limits.read / 2 ** 30).toFixed(0)} GiB/s of memory reads`,
  ].join("\n");
}

/** The JSON file's text: `rows` beside PyTorch, one a workload and dtype; `onnx` beside onnxruntime-node, where it took part. */
export function reportJson(machine: Machine, all: readonly Row[]): string {
  const of = (other: Other) => all.filter((row) => row.against === AGAINST[other]);
  const onnx = of("onnx");
  return `${JSON.stringify({ machine, rows: of("peer"), ...(onnx.length ? { onnx } : {}) }, null, 2)}\n`;
}
