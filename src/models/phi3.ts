/**
 * Phi-3 (Abdin et al. 2024): a Llama whose queries, keys and values are one product, gate and up another; LongRoPE for long texts, a sliding window where the
 * config asks. Numbers as transformers/models/phi3/modeling_phi3.py.
 */
import { projectionSpec, rmsNormSpec } from "../nn/layers";
import type { RopeScaling } from "../nn/rope-scaling";
import { matrix, repeat } from "../nn/spec";
import { type LlamaConfig, llamaConfig } from "./llama";

type Raw = { [key: string]: unknown };

/** What transformers' config class has where a file says nothing (configuration_phi3.py). */
const CLASS = {
  vocab_size: 32064,
  hidden_size: 3072,
  intermediate_size: 8192,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  max_position_embeddings: 4096,
  original_max_position_embeddings: 4096,
  rms_norm_eps: 1e-5,
};

/** A language model's part of config.json -> config with every value present. @throws listing unhandled keys and impossible sizes */
export function phi3Config(raw: unknown, where: string): LlamaConfig {
  const { resid_pdrop: _r, embd_pdrop: _e, attention_bias = false, model_type: _m, ...given } = (raw ?? {}) as Raw;
  if (attention_bias === true) throw new Error(`${where}: attention_bias true is not handled here; it changes what the model computes`);
  const scaling = (given.rope_parameters ?? given.rope_scaling ?? undefined) as RopeScaling | undefined;
  return llamaConfig({ ...CLASS, ...given, ...(scaling ? { rope_scaling: undefined, rope_parameters: asLongrope(scaling) } : {}) }, where, {
    qkv_bias: false,
    tied: false,
    window: "always",
  });
}

/** Older files call LongRoPE "su" or "yarn". */
function asLongrope({ type, rope_type = type, ...rest }: RopeScaling): RopeScaling {
  return { ...rest, rope_type: rope_type === "su" || rope_type === "yarn" ? "longrope" : rope_type };
}

const blockSpec = (name: string, c: LlamaConfig) => {
  const { hidden_size: D, intermediate_size: F, head_dim } = c;
  const [heads, groups] = [c.num_attention_heads, c.num_key_value_heads];
  return {
    ln1: rmsNormSpec(`${name}.input_layernorm`, D),
    attn: {
      qkv: projectionSpec(`${name}.self_attn.qkv_proj`, D, (heads + 2 * groups) * head_dim),
      out: projectionSpec(`${name}.self_attn.o_proj`, heads * head_dim, D),
    },
    ln2: rmsNormSpec(`${name}.post_attention_layernorm`, D),
    mlp: { gateUp: projectionSpec(`${name}.mlp.gate_up_proj`, D, 2 * F), down: projectionSpec(`${name}.mlp.down_proj`, F, D) },
  };
};

/** Every weight by its name in the file. prefix: "" or "language_model.". */
export const phi3Spec = (c: LlamaConfig, prefix = "") => ({
  token: matrix(`${prefix}model.embed_tokens.weight`, [c.vocab_size, c.hidden_size]),
  blocks: repeat(c.num_hidden_layers, (i) => blockSpec(`${prefix}model.layers.${i}`, c)),
  norm: rmsNormSpec(`${prefix}model.norm`, c.hidden_size),
  ...(c.tie_word_embeddings ? {} : { head: projectionSpec(`${prefix}lm_head`, c.hidden_size, c.vocab_size) }),
});
