#!/usr/bin/env python3
"""Writes cases.json and arrays.safetensors beside this file: rotary position embeddings as transformers computes them.

    python test/oracle/rope/make.py      (a Python with torch, transformers and safetensors)

Each case holds a config, the length that was asked for, and the names of its arrays: inverse frequencies, and q before and after the turn.
"""
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

HERE = Path(__file__).resolve().parent
BASE = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128, "rope_theta": 10000.0}
SHORT = [1.0 + 0.125 * i for i in range(8)]
LONG = [1.5 + 0.75 * i for i in range(8)]

# name -> what differs from BASE, spelled as a config.json spells it; and the length
CASES = {
    "default": ({}, None),
    "default_theta": ({"rope_theta": 1000000.0, "head_dim": 32}, None),
    "parameters": ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, None),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 4.0}}, None),
    "linear_partial": ({"rope_scaling": {"rope_type": "linear", "factor": 2.5}, "partial_rotary_factor": 0.5}, None),
    "dynamic_short": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 100),
    "dynamic_long": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 300),
    "llama3": ({"head_dim": 64, "rope_theta": 500000.0, "max_position_embeddings": 1024,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 256}}, None),
    "yarn": ({"head_dim": 64, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}, None),
    "yarn_options": ({"head_dim": 32, "rope_scaling": {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64, "beta_fast": 16,
                      "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False}}, None),
    "yarn_attention": ({"rope_scaling": {"rope_type": "yarn", "factor": 3.0, "attention_factor": 1.75}}, None),
    "longrope_short": ({"original_max_position_embeddings": 64,
                        "rope_scaling": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 2.0}}, 64),
    "longrope_long": ({"original_max_position_embeddings": 64,
                       "rope_scaling": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": None}}, 65),
}


def main():
    torch.manual_seed(0)
    arrays, cases = {}, []
    for name, (changes, length) in CASES.items():
        written = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
        config = LlamaConfig(**json.loads(json.dumps(written)))
        kind = config.rope_parameters["rope_type"]
        if kind == "default":
            embedding = LlamaRotaryEmbedding(config)
            frequencies, factor = embedding.inv_freq, embedding.attention_scaling
        else:
            frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)
        case = {"name": name, "config": written, "length": length, "attention_factor": float(factor), "heads": 2}
        rotated = 2 * len(frequencies)
        width = rotated * (2 if "partial" in name else 1)
        q = torch.randn(2, 2, 5, width)  # [B, H, N, dh]
        positions = torch.stack([torch.arange(5), torch.tensor([0, 7, 99, 1000, 30000])])
        angles = positions[..., None].float() * frequencies
        cos, sin = (f(torch.cat([angles, angles], -1)) * factor for f in (torch.cos, torch.sin))
        turned, _ = apply_rotary_pos_emb(q[..., :rotated], q[..., :rotated], cos, sin)
        after = torch.cat([turned, q[..., rotated:]], -1)
        tokens = lambda x: x.transpose(1, 2).reshape(2, 5, -1).contiguous()
        for key, value in {"frequencies": frequencies, "positions": positions.int(), "before": tokens(q), "after": tokens(after)}.items():
            arrays[f"{name}.{key}"] = value.clone().contiguous()
        cases.append(case)
    save_file(arrays, HERE / "arrays.safetensors")
    written = {"transformers": transformers.__version__, "torch": torch.__version__, "cases": cases}
    (HERE / "cases.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
