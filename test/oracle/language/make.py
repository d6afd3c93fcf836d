#!/usr/bin/env python3
"""Writes cases.json and arrays.safetensors beside this file: small OPT, T5 and BERT models of transformers with the options that no checkpoint of the
oracle's families has, their weights, inputs, and what comes out of each layer.

    python test/oracle/language/make.py      (a Python with torch, transformers and safetensors)

Array names: CASE/weights/NAME, CASE/inputs/NAME, CASE/NAME. Hidden states: the input of the first layer, then the output of each.
"""
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

HERE = Path(__file__).resolve().parent
OPT = dict(vocab_size=70, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, ffn_dim=40, max_position_embeddings=32)
T5 = dict(vocab_size=70, d_model=24, d_kv=10, d_ff=40, num_layers=2, num_heads=3, relative_attention_num_buckets=8,
          relative_attention_max_distance=12, dropout_rate=0.0, decoder_start_token_id=0)
BERT = dict(vocab_size=70, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, max_position_embeddings=32)

cases, arrays = {}, {}


def keep(name, x):
    arrays[name] = x.detach().to(torch.int32 if not x.is_floating_point() else torch.float32).contiguous().clone()


def seeded(model, seed):
    """Every weight random and none of it small, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 0.2 if p.dim() == 1 else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * spread + (1.0 if "norm.weight" in name.lower() else 0.0))
    return model.eval()


def watched(layers, run):
    """The input of the first layer and the output of each, and what `run` gives."""
    states, handles = [], []
    first = lambda _, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"])
    handles.append(layers[0].register_forward_pre_hook(first, with_kwargs=True))
    for layer in layers:
        handles.append(layer.register_forward_hook(lambda _m, _a, out: states.append(out[0] if isinstance(out, tuple) else out)))
    with torch.no_grad():
        out = run()
    for handle in handles:
        handle.remove()
    return states, out


def save_case(name, config, model, inputs, results):
    cases[name] = {"config": config, "hidden": {}, "outputs": []}
    for key, value in model.state_dict().items():
        keep(f"{name}/weights/{key}", value)
    for key, value in inputs.items():
        keep(f"{name}/inputs/{key}", value)
    for key, value in results.items():
        if isinstance(value, list):
            cases[name]["hidden"][key] = len(value)
            for i, x in enumerate(value):
                keep(f"{name}/{key}.{i}", x)
        else:
            cases[name]["outputs"].append(key)
            keep(f"{name}/{key}", value)


def batch(seed, rows=2, tokens=9, vocab=70):
    ids = torch.randint(3, vocab, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0  # padding on the left of the second row
    return ids, mask


def opt(name, seed, **options):
    config = {**OPT, **options}
    c = OPTConfig(**config)
    c._attn_implementation = "eager"
    model = seeded(OPTForCausalLM(c), seed)
    ids, mask = batch(seed)
    hidden, out = watched(model.model.decoder.layers, lambda: model(input_ids=ids, attention_mask=mask))
    save_case(name, config, model, {"ids": ids, "mask": mask}, {"hidden": hidden, "logits": out.logits})


def t5(name, seed, **options):
    config = {**T5, **options}
    c = T5Config(**config)
    c._attn_implementation = "eager"
    model = seeded(T5ForConditionalGeneration(c), seed)
    ids, mask = batch(seed)
    written = torch.tensor([[0, 5, 9, 60, 3], [0, 33, 8, 8, 12]])
    run = lambda: model(input_ids=ids, attention_mask=mask, decoder_input_ids=written)
    encoded, _ = watched(model.encoder.block, run)
    decoded, out = watched(model.decoder.block, run)
    save_case(name, config, model, {"ids": ids, "mask": mask, "written": written},
              {"encoder": encoded, "decoder": decoded, "states": out.encoder_last_hidden_state, "logits": out.logits})


def bert(name, seed, decoder=False, **options):
    config = {**BERT, **options}
    c = BertConfig(**config, is_decoder=decoder, add_cross_attention=decoder)
    c._attn_implementation = "eager"
    model = seeded(BertModel(c), seed)
    ids, mask = batch(seed)
    mask = mask.flip(1)
    inputs = {"ids": ids, "mask": mask, "types": (torch.arange(9) > 4).long().expand(2, 9)}
    call = dict(input_ids=ids, attention_mask=mask, token_type_ids=inputs["types"])
    if decoder:
        inputs["states"] = torch.randn(2, 6, config["hidden_size"], generator=torch.Generator().manual_seed(seed + 1))
        inputs["statesMask"] = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
        call.update(encoder_hidden_states=inputs["states"], encoder_attention_mask=inputs["statesMask"], use_cache=False)
    hidden, out = watched(model.encoder.layer, lambda: model(**call))
    save_case(name, config, model, inputs, {"hidden": hidden, "pooled": out.pooler_output})


def main():
    opt("opt_norm_behind", 1, do_layer_norm_before=False, word_embed_proj_dim=16)
    opt("opt_untied", 2, enable_bias=False, activation_function="gelu", _remove_final_layer_norm=True, tie_word_embeddings=False)
    t5("t5_first", 3, feed_forward_proj="relu")
    t5("t5_silu", 4, feed_forward_proj="gated-silu", num_decoder_layers=1)
    bert("bert", 5)
    bert("bert_reads", 6, decoder=True, hidden_act="gelu_new", type_vocab_size=3)
    save_file(arrays, str(HERE / "arrays.safetensors"))
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    (HERE / "cases.json").write_text(json.dumps({"versions": versions, "cases": cases}, indent=1) + "\n")


main()
