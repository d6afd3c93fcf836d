/** From scores to a token: the most probable one, or one that is drawn; and what the model thought of it. */
import type { Random } from "../data/random";
import type { Scores } from "./scores";

export type TokenLogprob = { id: number; logprob: number };

/** log of the sum of exp(score): a token's log-probability is its score minus this. @throws Error when the scores hold no probabilities */
export function logSumExp(scores: Scores): number {
  let most = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < scores.length; i++) if (scores[i] > most) most = scores[i];
  let sum = 0;
  for (let i = 0; i < scores.length; i++) sum += Math.exp(scores[i] - most);
  const result = most + Math.log(sum);
  if (Number.isFinite(result)) return result;
  throw new Error("generate: the scores of the next token are no finite numbers; the weights, or what was done to them, overflow");
}

/** The k highest scores, the highest first; of equal ones the lower id. */
export function highest(scores: Scores, k: number): TokenLogprob[] {
  const best: TokenLogprob[] = [];
  for (let id = 0; id < scores.length && k > 0; id++) {
    const score = scores[id];
    if (best.length === k && !(score > best[k - 1].logprob)) continue;
    let at = Math.min(best.length, k - 1);
    if (best.length < k) best.push({ id, logprob: score });
    for (; at > 0 && best[at - 1].logprob < score; at--) best[at] = best[at - 1];
    best[at] = { id, logprob: score };
  }
  return best;
}

const nothingLeft = (): Error =>
  new Error("generate: no token is left to choose; badWords, badTokenIds and minNewTokens together forbid all of them");

/** The highest score; of equal ones the lower id. */
export function chooseBest(scores: Scores): number {
  let best = -1;
  let most = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < scores.length; id++)
    if (scores[id] > most) {
      most = scores[id];
      best = id;
    }
  if (best === -1) throw nothingLeft();
  return best;
}

/** Draws by the probabilities of the scores, with one number of `next`. */
export function draw(scores: Scores, next: Random): number {
  const most = scores[chooseBest(scores)];
  let total = 0;
  for (let id = 0; id < scores.length; id++) total += Math.exp(scores[id] - most);
  let rest = next() * total;
  let last = -1;
  for (let id = 0; id < scores.length; id++) {
    const share = Math.exp(scores[id] - most);
    if (share === 0) continue;
    last = id;
    rest -= share;
    if (rest < 0) break;
  }
  return last;
}
