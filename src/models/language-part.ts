/** The language model of a BLIP-2, InstructBLIP or MiniGPT-4, by the `model_type` of its config: OPT, T5, or Llama and its kin. */
import type { TensorSource } from "../files/safetensors";
import { checkKnown } from "./config";
import { endTokens } from "./end-tokens";
import { endTokensOf, languageConfig } from "./language-config";
import { type Llama, llamaRotary, llamaSpec } from "./llama";
import { llamaLanguage } from "./llama-language";
import type { LanguageModel } from "./loaded";
import { type Opt, optConfig, optLanguage, optSpec } from "./opt";
import { type T5, t5Ignored, t5Language, t5Spec } from "./t5";
import { t5Config } from "./t5-config";

export type LanguageParams = Opt | T5 | Llama;
type LanguageSpec = ReturnType<typeof optSpec> | ReturnType<typeof t5Spec> | ReturnType<typeof llamaSpec>;

export type LanguagePart = {
  /** Width of what it reads. */
  hiddenSize: number;
  spec: LanguageSpec;
  /** Names that a file may hold besides. */
  ignored: RegExp;
  model(params: LanguageParams): LanguageModel;
  /** Frees what is no weight. */
  dispose(): void;
};

/** What a file may hold of any of them: the copy of a tied table, and buffers. */
const IGNORED = /rotary_emb\.inv_freq$/;

/**
 * @param raw `text_config`
 * @param file the folder whose generation_config.json counts, its tensors, and what stands before the language model's names
 * @throws listing unhandled keys and impossible sizes, or naming the families there are
 */
export function languagePart(
  raw: unknown,
  where: string,
  { folder, tensors, prefix }: { folder: string; tensors: Map<string, TensorSource>; prefix: string },
): LanguagePart {
  const { model_type = "opt", ...given } = (raw ?? {}) as { model_type?: string; [key: string]: unknown };
  checkKnown(`${where}: model_type`, model_type, ["opt", "t5", "llama", "mistral", "qwen2"]);
  if (model_type === "opt") {
    const c = optConfig(given, where);
    const ends = endTokens(folder, given, { eos_token_id: 2 });
    return {
      hiddenSize: c.word_embed_proj_dim,
      spec: optSpec(c, prefix),
      ignored: c.tie_word_embeddings ? /lm_head\.weight$/ : IGNORED,
      model: (p) => optLanguage(p as Opt, c, ends),
      dispose() {},
    };
  }
  if (model_type === "t5") {
    const c = t5Config(given, tensors.has(`${prefix}lm_head.weight`), where);
    const ends = endTokens(folder, given, { eos_token_id: 1 });
    return {
      hiddenSize: c.d_model,
      spec: t5Spec(c, prefix),
      ignored: t5Ignored,
      model: (p) => t5Language(p as T5, c, ends),
      dispose() {},
    };
  }
  const c = languageConfig(raw, where);
  let rotary: ReturnType<typeof llamaRotary> | undefined; // made with the first model: nothing is left behind where weights do not fit
  return {
    hiddenSize: c.hidden_size,
    spec: llamaSpec(c, prefix),
    ignored: IGNORED,
    model: (p) => llamaLanguage(p as Llama, c, (rotary ??= llamaRotary(c)), endTokensOf(folder, raw)),
    dispose: () => rotary?.inverseFrequencies.dispose(),
  };
}
