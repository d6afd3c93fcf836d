/** Llama and its kin as what `generate` drives. */
import { makeCache } from "../nn/cache";
import type { Rotary } from "../nn/rope";
import { embedTokens, headWeight, type Llama, type LlamaConfig, llama, llamaLogits } from "./llama";
import type { LanguageModel } from "./loaded";

/**
 * The language model around a Llama's weights.
 *
 * @param rotary of `llamaRotary`, which stays the caller's to dispose of
 * @param endTokens of `endTokens`
 */
export const llamaLanguage = (p: Llama, c: LlamaConfig, rotary: Rotary, endTokens: number[]): LanguageModel => ({
  vocabSize: c.vocab_size,
  hiddenSize: c.hidden_size,
  contextLength: c.max_position_embeddings,
  layers: c.num_hidden_layers,
  endTokens,
  embed: (ids) => embedTokens(p, ids),
  forward: ({ encoded: _, ...inputs }) => llama(p, c, { ...inputs, rotary }),
  logits: (hidden) => llamaLogits(p, hidden),
  headWeight: headWeight(p),
  makeCache: (room) => makeCache(c.num_hidden_layers, room),
});
