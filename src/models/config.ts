/**
 * Reading a family's part of `config.json`: class defaults fill what a file leaves out (published files often do), every value is checked before
 * anything is allocated, and a key that changes the computation and is not handled is an error.
 */
import { nearest } from "../files/nearest";

type Value = number | string | boolean | null;
/** A family's defaults, by the file's own keys. The type of each default is the type the file must give. */
export type Defaults = { [key: string]: Value };

/** Keys that transformers writes into any config and that change nothing in a forward pass, unless they leave their default. */
const HARMLESS = new Set(
  `_name_or_path architectures transformers_version torch_dtype dtype model_type initializer_factor initializer_range attention_dropout dropout
  return_dict output_hidden_states output_attentions torchscript use_bfloat16 pruned_heads tie_word_embeddings is_encoder_decoder is_decoder
  cross_attention_hidden_size add_cross_attention tie_encoder_decoder max_length min_length do_sample early_stopping num_beams num_beam_groups
  diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
  bad_words_ids num_return_sequences chunk_size_feed_forward output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
  remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens finetuning_task id2label label2id
  tokenizer_class prefix bos_token_id pad_token_id sep_token_id decoder_start_token_id task_specific_params problem_type tf_legacy_loss
  use_cache quantization_config gradient_checkpointing _commit_hash _attn_implementation_autoset _attn_implementation attn_implementation`.split(
    /\s+/,
  ),
);

/** Keys by which a repository asks for its own Python to be run. */
const FOREIGN_CODE = ["auto_map", "trust_remote_code"];

/** The largest count a config may give; a real model's vocabulary or width is far below. Layers are listed one by one before any file is compared. */
const largest = (key: string): number => (key.endsWith("_layers") ? 1000 : 10_000_000);
/** The smallest: an id may be 0, a size not. */
const smallest = (key: string): number => (/_id$|_layers$/.test(key) ? 0 : 1);

/**
 * @param where how errors call this part, e.g. `config.json: text_config`
 * @param ignored keys of this family that change nothing in a forward pass; `auto_map` is ignored with a warning of the process. null is "not given", as in
 *   files of before 2023, in which every key of every part is written out
 * @throws Error that lists every wrong type, impossible size and unhandled key at once
 */
export function readConfig<D extends Defaults>(
  raw: unknown,
  defaults: D,
  where: string,
  ignored: readonly string[] = [],
): { [K in keyof D]: Widen<D[K]> } {
  if (raw === undefined || raw === null) return { ...defaults } as { [K in keyof D]: Widen<D[K]> };
  if (typeof raw !== "object" || Array.isArray(raw))
    throw new Error(`${where} is ${Array.isArray(raw) ? "a list" : typeof raw}; expected an object`);
  const problems: string[] = [];
  const out: Defaults = { ...defaults };
  for (const [key, value] of Object.entries(raw)) {
    if (Object.hasOwn(defaults, key)) {
      const problem = misfit(key, value, defaults[key]);
      if (problem) problems.push(`  ${key}: ${problem}`);
      else if (value !== null) out[key] = value as Value;
    } else if (FOREIGN_CODE.includes(key)) {
      process.emitWarning(`${where}: ${key} is ignored; Vitrine runs no code from a model's folder`);
    } else if (value !== null && !HARMLESS.has(key) && !ignored.includes(key)) {
      const near = nearest(key, Object.keys(defaults));
      problems.push(`  ${key}: not handled here${near ? ` (nearest known key: ${near})` : ""}; it may change what the model computes`);
    }
  }
  if (problems.length) throw new Error(`${where} cannot be used:\n${problems.join("\n")}`);
  return out as { [K in keyof D]: Widen<D[K]> };
}

type Widen<T> = T extends number ? number : T extends string ? string : T extends boolean ? boolean : T;

function misfit(key: string, value: unknown, model: Value): string | undefined {
  if (value === null || model === null) return undefined;
  if (typeof value !== typeof model) return `is ${JSON.stringify(value)}, expected a ${typeof model}`;
  if (typeof model !== "number") return undefined;
  const x = value as number;
  if (!Number.isFinite(x)) return `is ${x}, expected a finite number`;
  const [least, most] = [smallest(key), largest(key)];
  if (Number.isInteger(model) && model > 1 && (!Number.isInteger(x) || x < least || x > most))
    return `is ${x}, expected a whole number from ${least} to ${most.toLocaleString("en")}`;
  if (!Number.isInteger(model) && model < 1 && x < 0) return `is ${x}, expected a number of at least 0`;
  return undefined;
}

/** Checks that a width divides into its heads, before any tensor is made. */
export function checkHeads(
  where: string,
  { hidden_size, num_attention_heads }: { hidden_size: number; num_attention_heads: number },
): void {
  if (num_attention_heads < 1 || hidden_size % num_attention_heads !== 0)
    throw new Error(`${where}: hidden_size ${hidden_size} does not divide into num_attention_heads ${num_attention_heads}`);
}

/** Checks a name against those that are known, before any tensor is made. */
export function checkKnown(where: string, name: string, known: readonly string[]): void {
  if (!known.includes(name)) throw new Error(`${where} "${name}" is not known; known: ${known.join(", ")}`);
}
