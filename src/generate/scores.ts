/**
 * What options do to the scores of the next token, in the order and by the formulas of transformers' logits processors (generation/logits_process.py):
 * repetition penalty, bad words, minimal length, bad tokens; when drawing, then temperature, top-k, top-p, min-p.
 */
import type { Settings } from "./options";

/** Scores of a vocabulary. They are changed in place: what cannot be chosen becomes -Infinity. */
export type Scores = Float32Array;

const OUT = Number.NEGATIVE_INFINITY;

/**
 * Tokens that are in `ids` become less likely (above 1) or more likely (below 1). Negative ids, which stand for pictures in the prompts of Ovis2.5 and of the
 * original LLaVA, are no tokens. marks: numbers of each token, all below `mark`
 */
export function penaliseRepetition(
  scores: Scores,
  ids: ArrayLike<number>,
  penalty: number,
  marks: Uint32Array = new Uint32Array(scores.length),
  mark = 1,
) {
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i];
    if (id < 0 || id >= scores.length || marks[id] === mark) continue; // the sequence may hold ids that the head does not score
    marks[id] = mark;
    scores[id] = scores[id] < 0 ? scores[id] * penalty : scores[id] / penalty;
  }
}

/** The last token of each sequence of ids, where the others stand at the end of `ids`. */
export function forbidWords(scores: Scores, ids: ArrayLike<number>, words: readonly (readonly number[])[]): void {
  for (const word of words) {
    const before = word.length - 1;
    let there = before <= ids.length;
    for (let i = 0; there && i < before; i++) there = ids[ids.length - before + i] === word[i];
    if (there) scores[word[before]] = OUT;
  }
}

export function forbid(scores: Scores, ids: Iterable<number>): void {
  for (const id of ids) scores[id] = OUT;
}

/** The k-th largest number, by a heap of k whose root is the smallest of them. */
export function kthLargest(values: ArrayLike<number>, k: number): number {
  const heap = new Float32Array(k).fill(OUT);
  for (let i = 0; i < values.length; i++) {
    const x = values[i];
    if (!(x > heap[0])) continue;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= k) break;
      if (child + 1 < k && heap[child + 1] < heap[child]) child++;
      if (heap[child] >= x) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = x;
  }
  return heap[0];
}

/** The k most probable, and all that are exactly so probable as the last of them. */
export function keepTopK(scores: Scores, k: number): void {
  if (k >= scores.length) return;
  const least = kthLargest(scores, k);
  for (let i = 0; i < scores.length; i++) if (scores[i] < least) scores[i] = OUT;
}

const largest = (scores: Scores): number => {
  let most = OUT;
  for (let i = 0; i < scores.length; i++) if (scores[i] > most) most = scores[i];
  return most;
};

/** The most probable tokens, until their probabilities reach p; at least one. */
export function keepTopP(scores: Scores, p: number): void {
  const most = largest(scores);
  let total = 0;
  for (let i = 0; i < scores.length; i++) total += Math.exp(scores[i] - most);
  // All tokens together that are less probable than (1 - p) / V stay below 1 - p: they go, and need no sorting.
  const least = ((1 - p) / scores.length) * total;
  let below = 0;
  const rest: number[] = [];
  for (let i = 0; i < scores.length; i++) {
    const share = Math.exp(scores[i] - most);
    if (share >= least && share > 0) rest.push(i);
    else {
      below += share;
      scores[i] = OUT;
    }
  }
  rest.sort((a, b) => scores[a] - scores[b] || b - a); // of equal ones the lower id stays; torch leaves it open
  for (const id of rest.slice(0, -1)) {
    below += Math.exp(scores[id] - most);
    if (below > (1 - p) * total) break;
    scores[id] = OUT;
  }
}

/** Tokens at least `share` times so probable as the most probable one. */
export function keepMinP(scores: Scores, share: number): void {
  const most = largest(scores);
  for (let i = 0; i < scores.length; i++) if (Math.exp(scores[i] - most) < share) scores[i] = OUT;
}

export type Rules = {
  /** Ids that end an answer. */
  ends: ReadonlySet<number>;
  /** Changes the scores of the token that follows `ids`, the prompt's included, `made` of which were generated. */
  apply(scores: Scores, ids: ArrayLike<number>, made: number): void;
};

/** The rules of a run. badWords: their ids. */
export function makeRules(settings: Settings, { ends, badWords }: { ends: ReadonlySet<number>; badWords: number[][] }): Rules {
  const { repetitionPenalty, minNewTokens, badTokenIds, doSample, temperature, topK, topP, minP } = settings;
  const words = badWords.filter((word) => !(word.length === 1 && ends.has(word[0]))); // as transformers: an end is no bad word
  let marks = new Uint32Array(0);
  let mark = 0;
  const apply = (scores: Scores, ids: ArrayLike<number>, made: number) => {
    if (repetitionPenalty !== 1) {
      if (marks.length !== scores.length) marks = new Uint32Array(scores.length);
      penaliseRepetition(scores, ids, repetitionPenalty, marks, ++mark);
    }
    forbidWords(scores, ids, words);
    if (made < minNewTokens) forbid(scores, ends);
    forbid(scores, badTokenIds);
    if (!doSample) return;
    if (temperature !== 1) for (let i = 0; i < scores.length; i++) scores[i] /= temperature;
    if (topK > 0) keepTopK(scores, topK);
    if (topP < 1) keepTopP(scores, topP);
    if (minP > 0) keepMinP(scores, minP);
  };
  return { ends, apply };
}
