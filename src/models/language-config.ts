/** The language model's part of a vision-language config.json, which leaves out what its class has by default. */
import { checkKnown } from "./config";
import { endTokens } from "./end-tokens";
import { type LlamaConfig, llamaConfig } from "./llama";

type Raw = { [key: string]: unknown };

const LLAMA = { vocab_size: 32000, hidden_size: 4096, intermediate_size: 11008, max_position_embeddings: 2048, eos_token_id: 2 };
/** What transformers' config classes have where a file says nothing (configuration_{llama,mistral,qwen2,qwen3}.py). */
const CLASSES: { [modelType: string]: Raw } = {
  llama: LLAMA,
  mistral: {
    ...LLAMA,
    intermediate_size: 14336,
    num_key_value_heads: 8,
    max_position_embeddings: 131072,
    sliding_window: 4096,
  },
  qwen2: { num_key_value_heads: 32 },
  qwen3: { num_key_value_heads: 32, head_dim: 128 },
};

/**
 * Llama, Mistral, Qwen2 or Qwen3 as one config with every value present.
 *
 * @param tied `tie_word_embeddings` of the whole model, where its file says it
 * @throws listing unhandled keys and impossible sizes, or naming the families there are
 */
export function languageConfig(raw: unknown, where: string, tied?: boolean): LlamaConfig {
  const { model_type = "llama", attention_bias = false, ...given } = (raw ?? {}) as Raw;
  const modelType = String(model_type);
  checkKnown(`${where}: model_type`, modelType, Object.keys(CLASSES));
  const merged: Raw = { ...CLASSES[modelType], ...given };
  if (merged.head_dim === null) merged.head_dim = undefined;
  if (attention_bias === true) throw new Error(`${where}: attention_bias true is not handled here; it changes what the model computes`);
  const own = given.tie_word_embeddings as boolean | undefined;
  const { tie_word_embeddings: _, ...rest } = merged;
  return llamaConfig({ ...rest, tie_word_embeddings: tied ?? own ?? false }, where, {
    qkv_bias: modelType === "qwen2",
    qk_norm: modelType === "qwen3",
    window: modelType === "mistral" ? "always" : "asked",
    tied: false,
  });
}

/** Ids that end an answer: of generation_config.json, or else of the language model's config, or of its class. */
export const languageEnd = (folder: string, text: unknown): number[] =>
  endTokens(folder, text, CLASSES[String((text as Raw | undefined)?.model_type ?? "llama")]);
