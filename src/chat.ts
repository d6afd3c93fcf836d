/** Talking with a model about pictures, in LMDeploy's manner: `pipeline(path)`, then `pipe("text")`, `pipe(["text", picture])`, `pipe.chat(…)`. */
import { answer, type ChatPrompt, type Piece, promptOf, type Response, type Speaker } from "./chat/answer";
import { type Ask, isBatch, LIMITS, type Message, readAsk } from "./chat/messages";
import { rendererOf, type TemplateChoice } from "./chat/render";
import { type GenConfig, type Kept, makeSessions, type Session } from "./chat/session";
import { type Thinking, thinkingOf } from "./chat/thinking";
import { interruptSignal } from "./engine/interrupt";
import { checkOptions, type GenerationOptions } from "./generate/options";
import type { TileOverrides } from "./image/tiles";
import { type LoadOptions, load } from "./models/index";
import type { VisionLanguageModel } from "./models/loaded";

export type { ChatPrompt, Piece, Response } from "./chat/answer";
export { type Budget, budgetOf, budgetText } from "./chat/budget";
export { type Ask, loadImage, type Message, type MessageInput } from "./chat/messages";
export type { Render, RenderMessage, TemplateChoice } from "./chat/render";
export type { GenConfig, Session } from "./chat/session";

export type PipelineOptions = LoadOptions & {
  /** How a conversation becomes a prompt. Default: the checkpoint's template, or that of its family's original program. */
  template?: TemplateChoice;
  /** Further variables of the template, such as { enable_thinking: true }. */
  variables?: { [name: string]: unknown };
  /** Tokens of a prompt and its answer together, where fewer than the model's own limit. */
  sessionLen?: number;
  /** Sessions whose computed tokens are kept. */
  maxSessions?: number;
  /** How pictures are cut, e.g. { max_patches: 4 }. */
  tiles?: TileOverrides;
};

export type AskOptions = { genConfig?: GenConfig; signal?: AbortSignal };
export type ChatOptions = AskOptions & {
  /** The conversation to go on with; default: a new one. */
  session?: Session;
  /** Gives the session at once; its answer comes with `for await (const { text } of session)`. */
  stream?: boolean;
};

export type Pipeline = {
  /**
   * Answers a question, or many one after another. Of many, those that cannot be answered have finishReason "error" and the error; the others are answered.
   * With `genConfig.n` above 1 a question has so many answers, in a row.
   */
  (ask: readonly Ask[], options?: AskOptions): Promise<Response[]>;
  (ask: Ask, options?: AskOptions & { genConfig?: GenConfig & { n?: 1 } }): Promise<Response>;
  (ask: Ask, options?: AskOptions): Promise<Response | Response[]>;
  /** The answer as it comes. */
  stream(ask: Ask, options?: AskOptions): AsyncGenerator<Piece, Response, undefined>;
  /**
   * One turn of a conversation. What was computed of it before is used again. Sessions that answer at the same time take turns token by token; a second
   * question to a session that is answering is an error.
   */
  chat(ask: Ask, options?: ChatOptions): Promise<Session>;
  /** What the model would read: the text with image marks, ids, where the pictures are, and the template's name. `showPrompt` displays it. */
  prompt(ask: Ask, options?: Pick<AskOptions, "genConfig">): Promise<ChatPrompt>;
  model: VisionLanguageModel;
  /** Frees what sessions keep computed, and the model where the pipeline loaded it. */
  close(): void;
};

/** Answers to one question at most. */
const MOST_ANSWERS = 16;

/**
 * A model to talk with.
 *
 * @param from a folder, a hub id, or a model that is loaded
 * @throws TypeError for a model that only embeds, such as CLIP
 * @example const pipe = await pipeline("emoji-vl"); (await pipe(["What is this?", picture])).text
 */
export async function pipeline(from: string | VisionLanguageModel, options: PipelineOptions = {}): Promise<Pipeline> {
  const { template, variables, sessionLen, maxSessions = 8, tiles, ...loading } = options;
  if (sessionLen !== undefined && !(Number.isInteger(sessionLen) && sessionLen >= 2))
    throw new RangeError(`pipeline: sessionLen is ${sessionLen}, expected a whole number of tokens from 2`);
  if (!(Number.isInteger(maxSessions) && maxSessions >= 0))
    throw new RangeError(`pipeline: maxSessions is ${maxSessions}, expected a whole number from 0`);
  const model = typeof from === "string" ? await load<VisionLanguageModel>(from, loading) : from;
  if (!["language", "prompt", "embedPrompt"].every((key) => key in model))
    throw new TypeError(`pipeline: ${model.modelType} answers no questions; embedImages() and embedTexts() are for such models`);
  const renderer = rendererOf(model, template, variables);
  return makePipeline({ model, renderer, sessionLength: sessionLen, tiles }, maxSessions, typeof from === "string");
}

type Many = { n: number; options: GenerationOptions; thinking?: Thinking; speaker: Speaker };

/** What is asked for, and the speaker whose template is told whether to think. @throws RangeError naming the options that are outside their limits */
function checked({ n = 1, enableThinking, thinkingBudget, ...options }: GenConfig, speaker: Speaker): Many {
  const { model, renderer } = speaker;
  if (!(Number.isInteger(n) && n >= 1 && n <= MOST_ANSWERS))
    throw new RangeError(`chat: n is ${n}, expected a whole number of answers from 1 to ${MOST_ANSWERS}`);
  checkOptions(options, model.language.vocabSize);
  const variables = { ...renderer.variables, ...(enableThinking === undefined ? {} : { enable_thinking: enableThinking }) };
  const isEnabled = variables.enable_thinking === true;
  const thinking = thinkingOf({ model, isEnabled }, { enableThinking, thinkingBudget }, options);
  return { n, ...thinking, speaker: { ...speaker, renderer: { ...renderer, variables } } };
}

function makePipeline(speaker: Speaker, maxSessions: number, owns: boolean): Pipeline {
  const { model } = speaker;
  const sessions = makeSessions(maxSessions);
  const messagesOf = (ask: Ask) => readAsk(ask, model.imageMark);

  async function* stream(
    ask: Ask,
    { genConfig = {}, signal = interruptSignal() }: AskOptions = {},
  ): AsyncGenerator<Piece, Response, undefined> {
    const { options, thinking, speaker: told } = checked(genConfig, speaker);
    const prompt = await promptOf(told, await messagesOf(ask));
    return yield* answer(told, prompt, options, { thinking, signal, keep: ({ cache }) => cache.dispose() });
  }

  async function several(ask: Ask, { n, options, thinking, speaker: told }: Many, signal: AbortSignal): Promise<Response[]> {
    const prompt = await promptOf(told, await messagesOf(ask));
    const responses: Response[] = [];
    let memory: Kept["memory"];
    try {
      for (let i = 0; i < n; i++) {
        const seed = options.seed === undefined ? undefined : options.seed + i;
        const before = memory;
        memory = undefined;
        responses.push(
          await last(answer(told, prompt, { ...options, seed }, { memory: before, thinking, signal, keep: (kept) => (memory = kept) })),
        );
      }
    } finally {
      memory?.cache.dispose();
    }
    return responses;
  }

  async function ask(given: Ask | readonly Ask[], { genConfig = {}, signal = interruptSignal() }: AskOptions = {}) {
    const many = checked(genConfig, speaker);
    if (!isBatch(given)) {
      const responses = await several(given, many, signal);
      return many.n === 1 ? responses[0] : responses;
    }
    if (given.length > LIMITS.prompts) throw new RangeError(`chat: ${given.length} questions, at most ${LIMITS.prompts} are read at once`);
    const all: Response[] = [];
    for (const [index, one] of given.entries()) {
      const responses = signal.aborted ? [unanswered("abort")] : await several(one, many, signal).catch((error) => [failed(error)]);
      for (const response of responses) all.push({ ...response, index });
    }
    return all;
  }

  async function chat(
    ask: Ask,
    { session: given, genConfig, signal = interruptSignal(), stream = false }: ChatOptions = {},
  ): Promise<Session> {
    const kept = sessions.open(given);
    const { session } = kept;
    const config = genConfig ?? session.genConfig ?? {};
    const { n, options, thinking, speaker: told } = checked(config, speaker);
    if (n !== 1) throw new RangeError("chat: n goes with pipe(…); a conversation goes on from one answer");
    kept.busy = true;
    try {
      const messages = [...session.messages, ...(await messagesOf(ask))];
      if (messages.length > LIMITS.messages) throw new RangeError(`chat: ${messages.length} messages, at most ${LIMITS.messages} are read`);
      const prompt = await promptOf(told, messages);
      Object.assign(session, { prompt: ask, response: undefined, genConfig: config });
      const memory = kept.memory;
      kept.memory = undefined;
      const run = answer(told, prompt, options, {
        memory,
        thinking,
        signal,
        keep: (memory, response) => ended(kept, ask, messages, memory, response),
      });
      kept.stream = readable(run, () => Object.assign(kept, { memory, busy: false }));
      if (!stream) await last(kept.stream);
      return session;
    } catch (error) {
      kept.busy = false;
      throw error;
    }
  }

  /** After a turn: what was said is part of the conversation, also when it was broken off. */
  function ended(kept: Kept, ask: Ask, messages: Message[], memory: NonNullable<Kept["memory"]>, response?: Response): void {
    const { session } = kept;
    kept.busy = false;
    sessions.remember(kept, memory);
    if (!response) return;
    session.response = response;
    session.messages = [...messages, { role: "assistant", content: [{ type: "text", text: response.text }] }];
    session.history = [...session.history, [ask, response.text]];
  }

  const call = ask as Pipeline;
  return Object.assign(call, {
    stream,
    chat,
    prompt: async (ask: Ask, { genConfig = {} }: Pick<AskOptions, "genConfig"> = {}) =>
      promptOf(checked(genConfig, speaker).speaker, await messagesOf(ask)),
    model,
    close() {
      sessions.close();
      speaker.renderer.template.close();
      if (owns) model.dispose();
    },
  });
}

const unanswered = (finishReason: Response["finishReason"]): Response => ({
  text: "",
  generateTokenLen: 0,
  inputTokenLen: 0,
  cachedTokenLen: 0,
  finishReason,
  tokenIds: [],
  index: 0,
});

const failed = (error: unknown): Response => ({
  ...unanswered("error"),
  error: error instanceof Error ? error : new Error(String(error)),
});

/** An answer to be read; `unread` is called when its reader leaves before the first piece, which a generator would not notice. */
function readable(run: AsyncGenerator<Piece, Response, undefined>, unread: () => void): AsyncGenerator<Piece, Response, undefined> {
  let begun = false;
  const stream = {
    next() {
      begun = true;
      return run.next();
    },
    return(value: Response) {
      if (!begun) unread();
      begun = true;
      return run.return(value);
    },
    throw: (error: unknown) => run.throw(error),
    [Symbol.asyncIterator]: () => stream,
  };
  return stream as AsyncGenerator<Piece, Response, undefined>;
}

/** What an answer ends with. */
async function last(run: AsyncGenerator<Piece, Response, undefined>): Promise<Response> {
  for (;;) {
    const { value, done } = await run.next();
    if (done) return value;
  }
}
