/**
 * InternLM2 (Cai et al. 2024), the language model of InternVL's original checkpoints: a Llama whose queries, keys and values are one product, a part for each
 * key head, with names of its own.
 */
import { linearSpec, projectionSpec, rmsNormSpec } from "../nn/layers";
import { matrix, repeat } from "../nn/spec";
import { type LlamaConfig, llamaConfig } from "./llama";

type Raw = { [key: string]: unknown };

/** What the original configuration class has where a file says nothing. */
const CLASS = {
  vocab_size: 103168,
  hidden_size: 4096,
  intermediate_size: 11008,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  max_position_embeddings: 2048,
  rms_norm_eps: 1e-6,
};

export type InternLM2Config = LlamaConfig & {
  /** Of attention's two products. */
  bias: boolean;
};

/** A language model's part of config.json -> config with every value present. @throws listing unhandled keys and impossible sizes */
export function internLM2Config(raw: unknown, where: string): InternLM2Config {
  const { bias = true, model_type: _m, ...given } = (raw ?? {}) as Raw;
  if (typeof bias !== "boolean") throw new Error(`${where}: bias is ${JSON.stringify(bias)}, expected true or false`);
  const c = llamaConfig({ ...CLASS, ...given }, where, { qkv_bias: bias, tied: false });
  return { ...c, bias, parts: c.num_key_value_heads };
}

const blockSpec = (name: string, c: InternLM2Config) => {
  const { hidden_size: D, intermediate_size: F, head_dim } = c;
  const [heads, groups] = [c.num_attention_heads, c.num_key_value_heads];
  const product = c.bias ? linearSpec : projectionSpec;
  return {
    ln1: rmsNormSpec(`${name}.attention_norm`, D),
    attn: {
      qkv: product(`${name}.attention.wqkv`, D, (heads + 2 * groups) * head_dim),
      out: product(`${name}.attention.wo`, heads * head_dim, D),
    },
    ln2: rmsNormSpec(`${name}.ffn_norm`, D),
    mlp: {
      gate: projectionSpec(`${name}.feed_forward.w1`, D, F),
      up: projectionSpec(`${name}.feed_forward.w3`, D, F),
      down: projectionSpec(`${name}.feed_forward.w2`, F, D),
    },
  };
};

/** Every weight by its name in the file. prefix: "" or "language_model.". */
export const internLM2Spec = (c: InternLM2Config, prefix = "") => ({
  token: matrix(`${prefix}model.tok_embeddings.weight`, [c.vocab_size, c.hidden_size]),
  blocks: repeat(c.num_hidden_layers, (i) => blockSpec(`${prefix}model.layers.${i}`, c)),
  norm: rmsNormSpec(`${prefix}model.norm`, c.hidden_size),
  ...(c.tie_word_embeddings ? {} : { head: projectionSpec(`${prefix}output`, c.hidden_size, c.vocab_size) }),
});
