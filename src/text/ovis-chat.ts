/**
 * How Ovis2.5's own code lets the model think: an answer may begin with thoughts that end with `</think>`, a budget cuts them off with a sentence of its own,
 * and what is shown of an answer, and said of it in the next turn, is what follows. Its prompts are the named template `ovis2_5`.
 */

export const THINK_BEGIN = "<think>";
export const THINK_END = "</think>";
/** What the original puts in the model's mouth when the budget is spent. */
export const OVIS_EARLY_STOP =
  "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n</think>\n\n";

export type ThinkingBudget = {
  /** Tokens for thoughts. */
  budget: number;
  /** Ids of `</think>` and of what ends an answer. */
  thinkEnd: number;
  endTokens: readonly number[];
  /** Ids of `OVIS_EARLY_STOP`. */
  earlyStop: readonly number[];
};

/**
 * What stands behind the tokens of an answer so far instead of the model's next one: the early stop, once, when the budget is spent and neither the
 * thoughts nor the answer has ended. Empty otherwise.
 *
 * @throws RangeError when the budget is no whole number from 1
 */
export function forcedTokens(ids: readonly number[], { budget, thinkEnd, endTokens, earlyStop }: ThinkingBudget): readonly number[] {
  if (!Number.isInteger(budget) || budget < 1) throw new RangeError(`thinking budget is ${budget}; expected a whole number from 1`);
  if (ids.length !== budget) return [];
  return ids.includes(thinkEnd) || ids.some((id) => endTokens.includes(id)) ? [] : earlyStop;
}

/** An answer's ids before and after its thoughts ended; all of it is answer where they did not. */
export function splitThoughts(ids: readonly number[], thinkEnd: number): { thoughts: number[]; answer: number[] } {
  const at = ids.indexOf(thinkEnd) + 1;
  return { thoughts: ids.slice(0, at), answer: ids.slice(at) };
}
