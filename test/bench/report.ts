/** From measurements to rows, a table and the JSON file. Pure functions. */
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

/** Both sides of one round, measured one after the other. */
export type Round = { peer: Result; ours: Result };

export type Row = {
  workload: Workload;
  dtype: BenchDtype;
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
export function toRow(rounds: readonly Round[], shareOf: (seconds: number) => number): Row {
  const { workload, dtype, unit } = rounds[0].ours;
  const side = (name: "ours" | "peer") => {
    const seconds = median(rounds.flatMap((round) => round[name].seconds));
    // rate x median seconds is the number of items in a repetition, which the side itself counted.
    const items = Math.round(rounds[0][name].rate * median(rounds[0][name].seconds));
    return { seconds, rate: items / seconds, rss: Math.max(...rounds.map((round) => round[name].peak_rss_mb)) };
  };
  const [ours, peer] = [side("ours"), side("peer")];
  const ratios = rounds.map((round) => median(round.peer.seconds) / median(round.ours.seconds));
  return {
    workload,
    dtype,
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

const HEADER = ["workload", "dtype", "ours", "peer", "unit", "speedup (range)", "ours MB", "peer MB", "memory", "of the limit"];

/** The rows as cells, the header first. */
export function cells(rows: readonly Row[]): string[][] {
  const times = (x: number) => `${x.toFixed(2)}x`;
  return [
    HEADER,
    ...rows.map((r) => [
      r.workload,
      r.dtype,
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
  memoryGb: number;
  limits: Limits;
  versions: Record<string, string>;
};

/** Two lines that stand above every table: a ratio means nothing without its processor. */
export function machineLines({ processor, instructions, cores, threads, memoryGb, limits, versions }: Machine): string {
  const gflops = (x: number) => `${Math.round(x / 1e9)} GFLOP/s`;
  return [
    `${processor}${instructions.length ? ` (${instructions.join(", ")})` : ""}, ${cores} cores, ${threads} threads each side, ${memoryGb} GB;  ${Object.entries(
      versions,
    )
      .map(([name, version]) => `${name} ${version}`)
      .join(", ")}`,
    `limits: ${gflops(limits.float32)} float32, ${gflops(limits.bfloat16)} bfloat16 (best large product of either side), ${(limits.read / 2 ** 30).toFixed(0)} GiB/s of memory reads`,
  ].join("\n");
}

/** The JSON file's text. */
export const reportJson = (machine: Machine, rows: readonly Row[]): string => `${JSON.stringify({ machine, rows }, null, 2)}\n`;
