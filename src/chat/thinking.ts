/** Whether a model thinks before it answers, for how long, and what of an answer were its thoughts. */
import type { GenerationOptions } from "../generate";
import { DEFAULTS } from "../generate/options";
import { withToken } from "../generate/text";
import type { VisionLanguageModel } from "../models/loaded";
import { forcedTokens, OVIS_EARLY_STOP, splitThoughts, THINK_BEGIN, THINK_END } from "../text/ovis-chat";

/** Names of Ovis2.5's own code. */
export type ThinkingOptions = {
  /** Whether the answer may begin with thoughts: the template's `enable_thinking`. Default: as the template does, Ovis2.5 without. */
  enableThinking?: boolean;
  /** Tokens of the thoughts at most: then the sentence with which Ovis2.5 ends them follows, and the answer. */
  thinkingBudget?: number;
};

/** How one answer is thought about. */
export type Thinking = {
  /** The id of `</think>`. */
  end: number;
  /** What stands in the answer instead of the model's next token. */
  follow?(ids: readonly number[]): readonly number[];
};

type Asked = { model: Pick<VisionLanguageModel, "tokenizer" | "language" | "modelType">; isEnabled: boolean };

const refuse = (text: string): never => {
  throw new RangeError(`chat: ${text}`);
};

/**
 * What the options ask for; nothing where the model is not to think.
 *
 * @param isEnabled whether the template is told so
 * @returns also the generation options: where they do not say how long an answer may be, a budget of thoughts does not shorten the answer
 * @throws RangeError naming the option that does not go with the others, or with the model
 */
export function thinkingOf(
  { model, isEnabled }: Asked,
  { enableThinking, thinkingBudget: budget }: ThinkingOptions,
  options: GenerationOptions,
): { thinking?: Thinking; options: GenerationOptions } {
  if (enableThinking !== undefined && typeof enableThinking !== "boolean")
    refuse(`enableThinking is ${JSON.stringify(enableThinking)}, expected true or false`);
  if (!isEnabled) return budget === undefined ? { options } : refuse("thinkingBudget goes with enableThinking: true");
  const { tokenizer, language, modelType } = model;
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });
  const end = tokenizer.idOf(THINK_END) as number;
  if (end === undefined) refuse(`${modelType} does not think: its tokenizer has no ${THINK_END}`);
  if (budget === undefined) return { thinking: { end }, options };
  if (!Number.isInteger(budget) || budget < 1) refuse(`thinkingBudget is ${budget}, expected a whole number of tokens from 1`);
  if ((options.numBeams ?? 1) > 1) refuse("thinkingBudget goes with one beam; numBeams searches whole answers");
  const earlyStop = encode(OVIS_EARLY_STOP);
  const least = budget + earlyStop.length;
  const maxNewTokens = options.maxNewTokens ?? least + DEFAULTS.maxNewTokens;
  if (maxNewTokens <= least)
    refuse(
      `thinkingBudget is ${budget}; with the ${earlyStop.length} tokens that end thoughts nothing of maxNewTokens, ${maxNewTokens}, is left for an answer; give more than ${least}`,
    );
  const rule = { budget, thinkEnd: end, earlyStop, endTokens: options.ignoreEos ? [] : language.endTokens };
  return { thinking: { end, follow: (ids) => forcedTokens(ids, rule) }, options: { ...options, maxNewTokens } };
}

/** An answer's text without its thoughts, and the thoughts, where they ended. */
export function withoutThoughts(
  { tokenizer }: Pick<VisionLanguageModel, "tokenizer">,
  { ids, text, skipSpecialTokens = DEFAULTS.skipSpecialTokens }: { ids: number[]; text: string; skipSpecialTokens?: boolean },
  { end }: Thinking,
): { text: string; thoughts?: string } {
  const { thoughts } = splitThoughts(ids, end);
  if (thoughts.length === 0) return { text };
  const spoken = tokenizer.decode(withToken(tokenizer, thoughts), { skipSpecialTokens });
  const plain = spoken.endsWith(THINK_END) ? spoken.slice(0, -THINK_END.length) : spoken;
  const begun = plain.trimStart();
  return {
    text: text.slice(spoken.length).trim(),
    thoughts: (begun.startsWith(THINK_BEGIN) ? begun.slice(THINK_BEGIN.length) : plain).trim(),
  };
}
