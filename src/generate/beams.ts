/**
 * Beam search: several answers are continued side by side, and the most probable ones kept. Scores, and when it ends, as transformers' generate
 * (generation/utils.py, `_beam_search`), whose sums are float32.
 */
import { highest, logSumExp, type TokenLogprob } from "./choose";
import type { Rules, Scores } from "./scores";

const { fround } = Math;
/** What is added to a score that must not be chosen; far below any log-probability, but a number. */
const NEVER = -1e9;

export type Beam = {
  /** Generated tokens. */
  ids: number[];
  /** Log-probability of each as the model saw it, before any rule. */
  logprobs: number[];
  /** While it grows: the sum of what the rules left of the log-probabilities. Of an answer: divided by its length to the power of lengthPenalty. */
  score: number;
};
type Finished = Beam & { done: boolean };

export type BeamSettings = { numBeams: number; lengthPenalty: number; earlyStopping: boolean | "never"; maxNewTokens: number };

export type BeamSearch = {
  /** The beams that go on, the best first. */
  running: Beam[];
  /**
   * Takes the scores of what follows each beam, row by row (one row: that of the prompt, which all share).
   * @returns for each beam that goes on, the one that it goes on from; undefined at the end
   */
  step(rows: Scores, vocabSize: number): number[] | undefined;
  /** The answers, the best first; of a search that was stopped, the best beam too. */
  answers(): Beam[];
};

/**
 * @param ids the prompt's, for the rules
 * @param isStopped whether an answer of these tokens ends, apart from end tokens
 */
export function beamSearch(
  settings: BeamSettings,
  rules: Rules,
  ids: readonly number[],
  isStopped: (made: number[]) => boolean = () => false,
): BeamSearch {
  const { numBeams, lengthPenalty, earlyStopping, maxNewTokens } = settings;
  const kept = Math.max(2, 1 + rules.ends.size) * numBeams;
  const begin = (i: number): Beam => ({ ids: [], logprobs: [], score: i === 0 ? 0 : NEVER });
  let running = Array.from({ length: numBeams }, (_, i) => begin(i));
  let finished: Finished[] = running.map(() => ({ ids: [], logprobs: [], score: NEVER, done: false }));
  let [canImprove, over] = [true, false];

  /** The best continuations of all beams together, the best first. */
  const continuations = (rows: Scores, vocabSize: number) => {
    const all: (TokenLogprob & { beam: number; raw: number })[] = [];
    for (const [b, beam] of running.entries()) {
      const row = rows.slice(...(rows.length === vocabSize ? [0, vocabSize] : [b * vocabSize, (b + 1) * vocabSize]));
      const raw = Float32Array.from(row);
      const total = logSumExp(row);
      for (let i = 0; i < row.length; i++) row[i] -= total;
      rules.apply(row, [...ids, ...beam.ids], beam.ids.length);
      for (let i = 0; i < row.length; i++) row[i] += beam.score;
      for (const { id, logprob } of highest(row, kept)) all.push({ id, logprob, beam: b, raw: raw[id] - total });
    }
    return all.sort((a, b) => b.logprob - a.logprob).slice(0, kept);
  };

  const isDone = (made: number): boolean => {
    const length = earlyStopping === "never" && lengthPenalty > 0 ? maxNewTokens : made;
    const best = running[0].score / length ** lengthPenalty;
    const worst = Math.min(...finished.map(({ score }) => score));
    canImprove &&= finished.some(({ done }) => best > (done ? worst : NEVER));
    return !canImprove || (earlyStopping === true && finished.every(({ done }) => done));
  };

  const step = (rows: Scores, vocabSize: number): number[] | undefined => {
    const next = continuations(rows, vocabSize).map(({ id, logprob, beam, raw }) => {
      const from = running[beam];
      const made = [...from.ids, id];
      const hit = rules.ends.has(id) || made.length >= maxNewTokens || isStopped(made);
      return { ids: made, logprobs: [...from.logprobs, raw], score: logprob, beam, hit };
    });
    const made = next[0].ids.length;
    const isFull = earlyStopping === true && finished.every(({ done }) => done);
    const ended = next.map(({ ids, logprobs, score, hit }, i): Finished => {
      const done = hit && i < numBeams;
      const penalties = (isFull ? NEVER : 0) + (canImprove ? 0 : NEVER) + (done ? 0 : NEVER);
      return { ids, logprobs, score: fround(fround(score / made ** lengthPenalty) + penalties), done };
    });
    finished = best([...finished, ...ended], numBeams);
    const live = best(
      next.map((one) => ({ ...one, score: one.hit ? fround(one.score + NEVER) : one.score })),
      numBeams,
    );
    running = live.map(({ ids, logprobs, score }) => ({ ids, logprobs, score }));
    over = isDone(made) || next.every(({ hit }) => hit);
    return over ? undefined : live.map(({ beam }) => beam);
  };

  const answers = (): Beam[] => {
    const done = finished.filter((one) => one.done);
    if (over) return done;
    const best = running[0];
    return [...done, { ...best, score: best.score / Math.max(1, best.ids.length) ** lengthPenalty }].sort((a, b) => b.score - a.score);
  };
  return {
    get running() {
      return running;
    },
    step,
    answers,
  };
}

/** The `count` of the highest score; of equal ones those that came first. */
const best = <T extends { score: number }>(all: T[], count: number): T[] =>
  all
    .map((one, i) => ({ one, i }))
    .sort((a, b) => b.one.score - a.one.score || a.i - b.i)
    .slice(0, count)
    .map(({ one }) => one);
