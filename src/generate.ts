/**
 * What a language model says to a prompt, token by token. The prompt is computed once into a cache of keys and values, each token then as one step.
 * Greedy, drawn or by beam search; decoders and encoder-decoders alike.
 */
import { random } from "./data/random";
import { breathe, interruptSignal } from "./engine/interrupt";
import { stoppable } from "./engine/stop";
import { tf } from "./engine/tf";
import { type Beam, beamSearch } from "./generate/beams";
import { chooseBest, draw, highest, logSumExp, type TokenLogprob } from "./generate/choose";
import { type DecoderPrompt, readPrompt, readTokens } from "./generate/decoder";
import { checkOptions, type GenerationOptions, type Settings } from "./generate/options";
import { makeRules, type Rules } from "./generate/scores";
import { type TextStream, textStream, withToken } from "./generate/text";
import type { DecoderInputs, LanguageModel } from "./models/loaded";
import type { Cache } from "./nn/cache";
import type { Tokenizer } from "./text/tokenizer";

export type { GenerationOptions } from "./generate/options";

export type GenerateInputs = GenerationOptions & {
  /** What the model reads: [1, N, D]. With a cache, what follows the tokens that are in it. Not disposed. */
  embeddings: tf.Tensor3D;
  /** The prompt's ids, those of the cache included: for the repetition penalty and bad words. Without them only the answer's count. */
  ids?: number[];
  /** int32 [1, all tokens of the prompt, those of the cache included], 1 where one is real. */
  padding?: tf.Tensor2D;
  /** Encoder-decoders: what the encoder made of the prompt, where that is known; `embeddings` is then not read. */
  encoded?: DecoderInputs["encoded"];
  /** Encoder-decoders: what the decoder begins with; default: its start token. */
  start?: number[];
  /** Of the caller, with one sequence or none: holds prompt and answer afterwards, but for the last token; after a beam search the prompt. */
  cache?: Cache;
  /** What stands behind the answer's tokens so far instead of the next one that is chosen; [] where nothing does. Not with beams. */
  follow?(ids: readonly number[]): readonly number[];
  /** For `text`, `stopWords` and `badWords`. */
  tokenizer?: Tokenizer;
  /** Ends the answer between two tokens, or two parts of a long prompt; what was said stays. Default: the cell's. */
  signal?: AbortSignal;
};

/** Why an answer ended: an end token or stop word, no room for more, or a signal. */
export type FinishReason = "stop" | "length" | "abort";

export type GeneratedToken = {
  id: number;
  /** What is certain of the text with this token; undefined without a tokenizer. */
  text?: string;
  /** Natural logarithm of the token's probability, before any rule. */
  logprob: number;
  /** The most probable tokens here, as many as asked for. */
  logprobs?: TokenLogprob[];
  /** With the last token. */
  finishReason?: FinishReason;
};

/** An answer, whole. */
export type Generation = {
  finishReason: FinishReason;
  /** All tokens, the one that ended it included. */
  ids: number[];
  /** "" without a tokenizer. */
  text: string;
  seed: number;
  /** After a beam search: the answers, the best first. */
  beams?: Beam[];
};

/**
 * Goes on from a prompt.
 *
 * @returns the tokens as they come; what the generator returns at its end is the whole answer (`collect` gives it)
 * @throws RangeError for options outside their limits, and for a prompt that the model's context does not hold
 * @example for await (const { text } of generate(model.language, { embeddings, tokenizer, maxNewTokens: 20 })) process.stdout.write(text!);
 */
export function generate(model: LanguageModel, inputs: GenerateInputs): AsyncGenerator<GeneratedToken, Generation, undefined> {
  const { embeddings, ids = [], padding, encoded, start, cache, follow, tokenizer, signal = interruptSignal(), ...options } = inputs;
  const settings = checkOptions(options, model.vocabSize);
  const needsText = (["stopWords", "badWords"] as const).filter((key) => settings[key].length > 0);
  if (follow && settings.numBeams > 1) throw new TypeError("generate: follow goes with one beam; a beam search chooses whole answers");
  if (!tokenizer && needsText.length) throw new TypeError(`generate: ${needsText.join(" and ")} need a tokenizer`);
  const [B, N] = embeddings.shape;
  if (B !== 1) throw new RangeError(`generate: embeddings [${embeddings.shape}] are ${B} prompts; give one at a time`);
  const length = model.encoder ? (start?.length ?? 1) : (cache?.length ?? 0) + N;
  if (N < 1 || length >= model.contextLength)
    throw new RangeError(
      `generate: the prompt has ${length} tokens; the model's context has ${model.contextLength}, one for an answer included`,
    );
  settings.maxNewTokens = Math.min(settings.maxNewTokens, model.contextLength - length);
  const ends = new Set([...(settings.ignoreEos ? [] : model.endTokens), ...settings.stopTokenIds]);
  const rules = makeRules(settings, { ends, badWords: wordIds(settings.badWords, tokenizer) });
  return run({ model, inputs: { embeddings, ids, padding, encoded, start, cache, follow }, settings, rules, tokenizer, signal });
}

/** All of an answer. */
export async function collect(
  answer: AsyncGenerator<GeneratedToken, Generation, undefined>,
): Promise<Generation & { tokens: GeneratedToken[] }> {
  const tokens: GeneratedToken[] = [];
  for (;;) {
    const { value, done } = await answer.next();
    if (done) return { ...value, tokens };
    tokens.push(value);
  }
}

/** Ids of words at a text's beginning, and after a blank. */
function wordIds(words: readonly string[], tokenizer?: Tokenizer): number[][] {
  const all = words.flatMap((word) => [word, ` ${word}`].map((text) => tokenizer!.encode(text, { addSpecialTokens: false })));
  return [...new Map(all.filter((ids) => ids.length > 0).map((ids) => [ids.join(), ids])).values()];
}

type Run = {
  model: LanguageModel;
  inputs: Pick<GenerateInputs, "embeddings" | "padding" | "encoded" | "start" | "cache" | "follow"> & { ids: number[] };
  settings: Settings;
  rules: Rules;
  tokenizer?: Tokenizer;
  signal: AbortSignal;
};

async function* run(here: Run): AsyncGenerator<GeneratedToken, Generation, undefined> {
  const { model, inputs, settings } = here;
  const made: tf.Tensor[] = [];
  const cache = inputs.cache ?? model.makeCache(inputs.embeddings.shape[1] + Math.min(settings.maxNewTokens, 256));
  try {
    const start = model.encoder ? encoderPrompt(here, cache, made) : { prompt: { ...inputs, cache }, ids: inputs.ids };
    return yield* settings.numBeams > 1 ? searched(here, start) : spoken(here, start);
  } finally {
    tf.dispose(made);
    if (!inputs.cache) cache.dispose();
  }
}

type Start = { prompt: DecoderPrompt | undefined; ids: number[] };

/** An encoder reads the prompt; the decoder begins with its start. Nothing where it was stopped. */
function encoderPrompt({ model, inputs }: Run, cache: Cache, made: tf.Tensor[]): Start {
  const { startToken, encode } = model.encoder!;
  const { embeddings, padding, start = [startToken] } = inputs;
  const encoded = inputs.encoded ?? stoppable(() => ({ states: encode({ embeddings, padding }), padding }));
  if (!encoded) return { prompt: undefined, ids: [] };
  if (!inputs.encoded) made.push(encoded.states);
  const first = tf.tidy(() => model.embed(tf.tensor2d(start, [1, start.length], "int32")));
  made.push(first);
  return { prompt: { embeddings: first, cache, encoded }, ids: start };
}

/** Token after token. */
async function* spoken(
  { model, inputs: { follow }, settings, rules, tokenizer, signal }: Run,
  start: Start,
): AsyncGenerator<GeneratedToken, Generation, undefined> {
  const stream = tokenizer && textStream(tokenizer, settings.stopWords, settings.skipSpecialTokens);
  const next = random(settings.seed);
  const ids = [...start.ids];
  const made: number[] = [];
  const forced: number[] = [];
  let text = "";
  let raw = new Float32Array(0);
  const ending = (finishReason: FinishReason): Generation => ({ finishReason, ids: made, text, seed: settings.seed });
  let scores = start.prompt && (await readPrompt(model, start.prompt, signal));
  while (scores) {
    const total = logSumExp(scores);
    const logprobs = settings.logprobs ? highest(scores, settings.logprobs) : undefined;
    for (const one of logprobs ?? []) one.logprob -= total;
    if (raw.length !== scores.length) raw = new Float32Array(scores.length);
    raw.set(scores); // the rules change them
    rules.apply(scores, ids, made.length);
    const id = forced.shift() ?? (settings.doSample ? draw(scores, next) : chooseBest(scores));
    ids.push(id);
    made.push(id);
    if (follow && forced.length === 0) forced.push(...follow(made));
    const said = say(stream, id, { rules, made: made.length, settings });
    text += said.text;
    const token = { id, text: stream && said.text, logprob: raw[id] - total, logprobs };
    yield said.finishReason ? { ...token, finishReason: said.finishReason } : token;
    if (said.finishReason) return ending(said.finishReason);
    await breathe();
    if (signal.aborted) break;
    scores = await readTokens(model, [id], start.prompt!);
  }
  text += stream?.end() ?? "";
  return ending("abort");
}

/** The text of one more token, and whether the answer ends with it. */
function say(
  stream: TextStream | undefined,
  id: number,
  { rules, made, settings }: { rules: Rules; made: number; settings: Settings },
): { text: string; finishReason?: FinishReason } {
  if (rules.ends.has(id)) return { text: stream?.end() ?? "", finishReason: "stop" };
  const { text, stopped } = stream?.push(id, made > settings.minNewTokens) ?? { text: "", stopped: false };
  if (stopped) return { text, finishReason: "stop" };
  return made < settings.maxNewTokens ? { text } : { text: text + (stream?.end() ?? ""), finishReason: "length" };
}

/** The tokens of the best answer of a beam search, when it is over. */
async function* searched(
  { model, settings, rules, tokenizer, signal }: Run,
  { prompt, ids }: Start,
): AsyncGenerator<GeneratedToken, Generation, undefined> {
  const isStopped = (made: number[]): boolean => {
    if (!settings.stopWords.length || made.length <= settings.minNewTokens) return false;
    const text = tokenizer!.decode(withToken(tokenizer!, made), { skipSpecialTokens: settings.skipSpecialTokens });
    return settings.stopWords.some((word) => text.includes(word));
  };
  const search = beamSearch(settings, rules, ids, isStopped);
  let over = false;
  if (prompt) {
    const { cache, encoded } = prompt;
    let scores = await readPrompt(model, prompt, signal);
    const first = cache.length;
    const wide = scores &&
      encoded && { states: many(encoded.states, settings.numBeams), padding: encoded.padding && many(encoded.padding, settings.numBeams) };
    try {
      while (scores) {
        const from = search.step(scores, model.vocabSize);
        over = !from;
        if (!from) break;
        cache.reorder(from, cache.length > first ? first : 0);
        await breathe();
        if (signal.aborted) break;
        scores = await readTokens(
          model,
          search.running.map((beam) => beam.ids.at(-1)!),
          { ...prompt, encoded: wide },
        );
      }
    } finally {
      tf.dispose([wide?.states, wide?.padding].filter(Boolean) as tf.Tensor[]);
      cache.truncate(Math.min(first, cache.length));
      cache.reorder([0]);
    }
  }
  const beams = search.answers();
  const best = beams[0] ?? { ids: [], logprobs: [], score: 0 };
  const stream = tokenizer && textStream(tokenizer, settings.stopWords, settings.skipSpecialTokens);
  let text = "";
  let reason: FinishReason = "abort";
  for (const [i, id] of best.ids.entries()) {
    const said = say(stream, id, { rules, made: i + 1, settings });
    const last = i === best.ids.length - 1;
    const piece = said.text + (last && !said.finishReason ? (stream?.end() ?? "") : "");
    text += piece;
    if (last && over) reason = said.finishReason ?? "stop";
    yield { id, text: stream && piece, logprob: best.logprobs[i], ...(last ? { finishReason: reason } : {}) };
  }
  return { finishReason: reason, ids: best.ids, text, seed: settings.seed, beams };
}

const many = <T extends tf.Tensor>(x: T, times: number): T => tf.tile(x, [times, ...x.shape.slice(1).map(() => 1)]) as T;
