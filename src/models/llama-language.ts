/** Llama and its kin as a language model that `generate` drives. */
import { tf } from "../engine/tf";
import { makeCache } from "../nn/cache";
import { embedTokens, headWeight, type Llama, type LlamaConfig, llama, llamaLogits } from "./llama";
import type { LanguageModel } from "./loaded";
import type { Rotary } from "../nn/rope";

/** rotary: `llamaRotary(c)`, which stays the caller's. */
export const llamaLanguage = (p: Llama, c: LlamaConfig, rotary: Rotary, endTokens: number[]): LanguageModel => ({
  vocabSize: c.vocab_size,
  hiddenSize: c.hidden_size,
  contextLength: c.max_position_embeddings,
  layers: c.num_hidden_layers,
  endTokens,
  embed: (ids) => tf.tidy(() => embedTokens(p, ids)),
  forward: (inputs) => llama(p, c, { ...inputs, rotary }),
  logits: (hidden) => tf.tidy(() => llamaLogits(p, hidden)),
  headWeight: headWeight(p),
  makeCache: (room) => makeCache(c.num_hidden_layers, room),
});
