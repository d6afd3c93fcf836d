/** One answer to a conversation: rendered, computed from what is new on, token by token. */
import { interruptSignal } from "../engine/interrupt";
import { stoppable } from "../engine/stop";
import type { tf } from "../engine/tf";
import { type FinishReason, type GeneratedToken, type Generation, type GenerationOptions, generate } from "../generate";
import type { TokenLogprob } from "../generate/choose";
import type { TileOverrides } from "../image/tiles";
import type { LanguageModel, Prompt, VisionLanguageModel } from "../models/loaded";
import { budgetOf, checkRoom } from "./budget";
import { knownOf, type Memory } from "./memory";
import { type Message, picturesOf } from "./messages";
import { type Renderer, renderSafely } from "./render";
import { type Thinking, withoutThoughts } from "./thinking";

/** An answer, by LMDeploy's names. */
export type Response = {
  /** The answer, without thoughts. */
  text: string;
  /** What the model thought before it, with `enableThinking: true`; absent where the thoughts did not end: then all is in `text`. */
  thoughts?: string;
  /** Tokens that were generated, the one that ended the answer included. */
  generateTokenLen: number;
  /** Tokens of the prompt, pictures included. */
  inputTokenLen: number;
  /** Tokens of the prompt that were computed before, in this session. */
  cachedTokenLen: number;
  finishReason: FinishReason | "error";
  tokenIds: number[];
  /** With the option `logprobs`: the most probable tokens at each of `tokenIds`. */
  logprobs?: TokenLogprob[][];
  /** Of the draws. */
  seed?: number;
  /** In a batch, the number of the question. */
  index: number;
  /** With finishReason "error": what went wrong. */
  error?: Error;
};

/** A part of an answer as it comes. */
export type Piece = {
  text: string;
  tokenId: number;
  logprob: number;
  /** Of the thoughts before the answer, with `enableThinking: true`. */
  thought?: boolean;
  finishReason?: FinishReason;
};

/** A prompt, which template made it, and what stands for a picture in its text. */
export type ChatPrompt = Prompt & { template: string; imageMark: string };

export type Speaker = { model: VisionLanguageModel; renderer: Renderer; sessionLength?: number; tiles?: TileOverrides };

/** What a conversation becomes: the prompt's text with image marks, and its ids. @throws RangeError with the token budget where it does not fit */
export async function promptOf({ model, renderer, sessionLength, tiles }: Speaker, messages: readonly Message[]): Promise<ChatPrompt> {
  const text = await renderSafely(model, renderer, messages);
  const prompt = model.prompt(text, picturesOf(messages), tiles);
  checkRoom(budgetOf(model, prompt, sessionLength));
  return { ...prompt, template: renderer.template.name, imageMark: model.imageMark };
}

/** The template's own ends, as ids where they are tokens. */
function withEnds({ model, renderer }: Speaker, options: GenerationOptions): GenerationOptions {
  const { stopWords } = renderer;
  if (!stopWords.length || options.ignoreEos) return options;
  const idOf = (word: string) => model.tokenizer.idOf(word);
  return {
    ...options,
    stopTokenIds: [...(options.stopTokenIds ?? []), ...stopWords.flatMap((word) => idOf(word) ?? [])],
    stopWords: [...(options.stopWords ?? []), ...stopWords.filter((word) => idOf(word) === undefined)],
  };
}

/** The memory of a new conversation. */
const begin = (model: VisionLanguageModel): Memory => ({ ids: [], images: [], cache: model.language.makeCache(0) });

export type AnswerOptions = {
  /** Of the turn before; changed. */
  memory?: Memory;
  /**
   * Takes the memory with which the next turn can begin, the receiver's to dispose of, and the answer; of one whose reader left, what was said;
   * nothing after an error.
   */
  keep(memory: Memory, response?: Response): void;
  /** Whether the model thinks before it answers. */
  thinking?: Thinking;
  signal?: AbortSignal;
};

/** Answers a prompt, piece by piece. */
export async function* answer(
  speaker: Speaker,
  prompt: Prompt,
  options: GenerationOptions,
  { memory = begin(speaker.model), keep, thinking, signal = interruptSignal() }: AnswerOptions,
): AsyncGenerator<Piece, Response, undefined> {
  const { model } = speaker;
  const { cache } = memory;
  const from = knownOf(model, memory, prompt);
  const tokens: GeneratedToken[] = [];
  let whole: Generation | undefined;
  let broken = false;
  let isThought = thinking !== undefined;
  const said = () => {
    const text = whole?.text ?? tokens.map(({ text }) => text).join("");
    const ids = tokens.map(({ id }) => id);
    return thinking ? withoutThoughts(model, { ids, text, skipSpecialTokens: options.skipSpecialTokens }, thinking) : { text };
  };
  const respond = (): Response => ({
    ...said(),
    generateTokenLen: tokens.length,
    inputTokenLen: prompt.ids.length,
    cachedTokenLen: from,
    finishReason: whole?.finishReason ?? "abort",
    tokenIds: tokens.map(({ id }) => id),
    ...(options.logprobs ? { logprobs: tokens.map(({ logprobs }) => logprobs ?? []) } : {}),
    seed: whole?.seed ?? options.seed,
    index: 0,
  });
  cache.truncate(from);
  let embeddings: tf.Tensor3D | undefined;
  let run: ReturnType<typeof generate> | undefined;
  try {
    embeddings = signal.aborted ? undefined : stoppable(() => model.embedPrompt(prompt, { from }));
    if (!embeddings) return respond();
    const own = model.language.encoder ? undefined : cache;
    const inputs = {
      embeddings,
      ids: prompt.ids,
      start: prompt.start,
      cache: own,
      follow: thinking?.follow,
      tokenizer: model.tokenizer,
      signal,
    };
    run = generate(limited(speaker, prompt), { ...withEnds(speaker, options), ...inputs });
    for (;;) {
      const { value, done } = await run.next();
      if (done) {
        whole = value;
        return respond();
      }
      tokens.push(value);
      const piece = { text: value.text ?? "", tokenId: value.id, logprob: value.logprob, finishReason: value.finishReason };
      yield isThought ? { ...piece, thought: true } : piece;
      isThought &&= value.id !== thinking?.end;
    }
  } catch (error) {
    broken = true;
    throw error;
  } finally {
    await run?.return(undefined as never);
    embeddings?.dispose();
    const all = [...prompt.ids, ...tokens.map(({ id }) => id)];
    keep(
      { ids: all.slice(0, cache.length), images: prompt.images.filter(({ end }) => end <= cache.length), cache },
      broken ? undefined : respond(),
    );
  }
}

/** The language model within the session's length. Where an encoder reads the prompt, the answer alone counts, behind its start. */
function limited({ model: { language }, sessionLength = Number.POSITIVE_INFINITY }: Speaker, { ids, start = [0] }: Prompt): LanguageModel {
  const length = language.encoder ? sessionLength - ids.length + start.length : sessionLength;
  return length >= language.contextLength ? language : { ...language, contextLength: length };
}
