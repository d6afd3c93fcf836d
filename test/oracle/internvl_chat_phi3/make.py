"""InternVLChatModel around Phi-3 (InternVL2-4B) as an oracle family: LongRoPE, fused qkv_proj and gate_up_proj; in variant A a sliding window, a part of
each head that turns, and tiles larger than the position table is for. transformers' Phi3ForCausalLM computes the language model, the generator's modules
the picture tower. Needs torch, transformers 5, peft and the oracle's generator.

    python make.py TOOLS OUT [--variant A|B]     # TOOLS: the folder with the generator's lib/; writes OUT/internvl_chat_phi3 and OUT/images
"""
import argparse
import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES="")
sys.dont_write_bytecode = True
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("tools", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--variant", choices=["A", "B"], default="A")
args = parser.parse_args()
sys.path.insert(0, str(args.tools.resolve()))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from lib import internvl_chat as chat  # noqa: E402
from lib import tok  # noqa: E402
from lib.common import (Recorder, capture, capture_output, generator_for, lora_run, record_gradients, save_state, seeded_weights,  # noqa: E402
                        write_json)
from lib.decoding import masked_labels  # noqa: E402
from lib.images import load_rgb, make_images  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM  # noqa: E402

ROLES = ["<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]


class Model(nn.Module):
    def __init__(self, config, language):
        super().__init__()
        vision, self.cfg = config["vision_config"], config
        self.vision_model = chat.InternVit(vision)
        self.language_model = Phi3ForCausalLM(Phi3Config(**language, attn_implementation="eager"))
        wide, width = 4 * vision["hidden_size"], language["hidden_size"]
        self.mlp1 = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width))

    image_features = chat.InternVLChat.image_features

    def forward(self, ids, pixels=None, context=None):
        x = self.language_model.get_input_embeddings()(ids)
        if pixels is not None:
            rows = self.image_features(pixels).flatten(0, 1)
            x = x.masked_scatter((ids == context)[..., None], rows)
        return self.language_model(inputs_embeds=x, use_cache=False).logits


def conversation(turns, system="You help."):
    text = f"<|system|>\n{system}<|end|>"
    for role, words in turns:
        text += f"<|{role}|>\n" + (f"{words}<|end|>" if words is not None else "")
    return text


def main():
    seed = {"A": 0, "B": 1}[args.variant]
    args.out.mkdir(parents=True, exist_ok=True)
    images = make_images(args.out, seed)
    torch.manual_seed(seed)
    rec = Recorder(args.out, "internvl_chat_phi3", args.variant, seed)
    vocab = tok.llama(rec.model_dir, rec.seed, rec.pick(460, 520), added=ROLES + chat.SPECIAL, metaspace="legacy")
    vision = chat.vision_cfg(rec, "phi3")
    heads, head_dim, turned = rec.pick(4, 6), 8, rec.pick(0.75, 1.0)
    pairs = int(head_dim * turned) // 2
    factors = torch.rand(2, pairs, generator=generator_for("factors", rec.seed))
    scaling = {"type": rec.pick("longrope", "su"), "short_factor": [round(1 + 0.2 * x, 3) for x in factors[0].tolist()],
               "long_factor": [round(1.5 + 3 * x, 3) for x in factors[1].tolist()]}
    sizes = dict(vocab_size=vocab, hidden_size=heads * head_dim, intermediate_size=rec.pick(64, 72), num_hidden_layers=rec.pick(2, 3),
                 num_attention_heads=heads, num_key_value_heads=rec.pick(4, 2), rms_norm_eps=1e-5, max_position_embeddings=640,
                 original_max_position_embeddings=160, sliding_window=rec.pick(48, None), partial_rotary_factor=turned, tie_word_embeddings=False)
    known = {**scaling, "type": "longrope", "original_max_position_embeddings": 160}  # transformers 5 no longer takes the older name
    language = {**sizes, "rope_theta": 10000.0, "rope_scaling": known, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    llm = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **sizes, "rope_theta": 10000.0, "rope_scaling": scaling, "hidden_act": "silu",
           "attention_dropout": 0.0, "attention_bias": False, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2,
           "pad_token_id": 0, "use_cache": True, "torch_dtype": "bfloat16",
           "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
    config = {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "downsample_ratio": 0.5, "dynamic_image_size": True,
        "force_image_size": vision["image_size"] + rec.pick(2 * vision["patch_size"], 0), "llm_config": llm, "max_dynamic_patch": rec.pick(12, 6),
        "min_dynamic_patch": 1, "pad2square": False, "ps_version": "v2", "select_layer": -1, "template": "phi3-chat", "torch_dtype": "bfloat16",
        "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": True, "vision_config": vision}
    size = config["force_image_size"]
    write_json(rec.model_dir / "config.json", config)
    write_json(rec.model_dir / "preprocessor_config.json", {
        "crop_size": size, "do_center_crop": True, "do_normalize": True, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor",
        **chat.IMAGENET, "resample": 3, "size": size})

    def fresh():
        return seeded_weights(Model(config, dict(language, rope_scaling=dict(known))), rec.seed, "bfloat16").eval()

    model = fresh()
    save_state({k: v.to(torch.bfloat16) for k, v in model.named_parameters()}, rec.model_dir, shards=rec.pick(1, 2))
    tokenizer = AutoTokenizer.from_pretrained(rec.model_dir)
    context, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<IMG_CONTEXT>", "<|end|>"))
    write_json(rec.model_dir / "generation_config.json", {"_from_model_config": True, "eos_token_id": [2, end], "transformers_version": "4.37.2"})
    tok.record(rec, tokenizer, rec.model_dir, ["<|user|>\n<img><IMG_CONTEXT></img>\nhello<|end|>"])
    entries = []
    for i, item in enumerate(images):
        tiles, grid = chat.tile(load_rgb(rec.root / item["file"]), size, 1, config["max_dynamic_patch"])
        entry = {"file": item["file"], "grid_columns_rows": list(grid), "tiles": len(tiles)}
        if len(tiles) <= 3:
            entry["pixel_values"] = rec.put(f"image.tiles.{i}.pixel_values", chat.to_pixels(tiles))
        entries.append(entry)
    rec.case("images", {"label": "tiles", "pil_class": "dynamic_preprocess of the original repository (emulated)", "cases": entries})
    tokens = (size // vision["patch_size"] // 2) ** 2
    for name, turns, counts in (("single", [("user", "<image>\nWhat is it?"), ("assistant", None)], [2]),
                                ("multi_turn", [("user", "<image>\nhow many?"), ("assistant", "Three."), ("user", "sure?"), ("assistant", None)], [1])):
        full = chat.expand(conversation(turns), counts, tokens)
        rec.case("chat", {"name": name, "template": "phi3-chat", "turns": turns, "system": "You help.", "tiles_per_image": counts,
                          "rendered_with_generation_prompt": conversation(turns), "expanded": full, "ids": tokenizer(full)["input_ids"]})

    limit = 2
    tiles, grid = chat.tile(load_rgb(rec.root / images[0]["file"]), size, 1, limit)
    pixels = chat.to_pixels(tiles)
    text = chat.expand(conversation([("user", "<image>\nWhat is it?"), ("assistant", None)]), [len(tiles)], tokens)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert ids.shape[1] + 16 <= 160, ids.shape  # one set of frequencies for the whole answer
    rec.put("forward.input_ids", ids)
    rec.put("forward.pixel_values", pixels)
    with torch.no_grad(), capture(model.vision_model.encoder.layers) as vis, capture(model.language_model.model.layers) as lm, \
            capture_output(model.mlp1) as mlp, capture_output(model.language_model.model.norm) as norm:
        logits = model(ids, pixels, context)
    rec.case("forward", {"name": "image_prompt", "text": text, "image": images[0]["file"], "max_tiles": limit, "grid_columns_rows": list(grid),
                         "context_token_id": context, "inputs": ["forward.input_ids", "forward.pixel_values"],
                         "vision_hidden": rec.put_all("vision.hidden", vis), "mlp1": rec.put("mlp1", mlp[0]), "lm_hidden": rec.put_all("lm.hidden", lm),
                         "lm_last_hidden_state": rec.put("lm.last_hidden_state", norm[0]), "logits": rec.put("logits", logits)})
    long_ids = torch.randint(3, 260, (1, 200), generator=generator_for("long", rec.seed))
    with torch.no_grad():
        long_logits = fresh()(long_ids)
    rec.case("forward", {"name": "long_text_longrope", "inputs": [rec.put("long.input_ids", long_ids)],
                         "logits_last16": rec.put("long.logits_last16", long_logits[:, -16:]), "note": "beyond original_max_position_embeddings"})
    row, new, gaps, steps = ids, [], [], []
    with torch.no_grad():
        for _ in range(16):
            last = model(row, pixels, context)[0, -1]
            top = last.topk(2)
            new.append(int(top.indices[0]))
            gaps.append(float(top.values[0] - top.values[1]))
            steps.append(last)
            assert new[-1] != context
            row = torch.cat([row, torch.tensor([[new[-1]]])], 1)
    rec.case("generation", {"name": "image_prompt", "input_ids": ids[0].tolist(), "new_ids": new, "text_raw": tokenizer.decode(new),
                            "min_top2_gap": min(gaps), "step_logits": rec.put("generate.image_prompt.logits", torch.stack(steps)),
                            "note": "every step recomputed from the whole sequence (no cache)"})
    labels = masked_labels(ids, 10)
    rec.put("loss.labels", labels)

    def loss_fn(m):
        return F.cross_entropy(m(ids, pixels, context)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    record_gradients(rec, "lm", model, loss_fn, [
        "mlp1.0.weight", "mlp1.1.weight", "vision_model.encoder.layers.0.ls1", "vision_model.encoder.layers.0.attn.qkv.weight",
        "vision_model.embeddings.position_embedding", "language_model.model.layers.0.self_attn.qkv_proj.weight",
        "language_model.model.layers.1.mlp.gate_up_proj.weight", "language_model.model.layers.0.mlp.down_proj.weight",
        "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"])
    lora_run(rec, "lora", fresh, loss_fn, lambda m: m(ids, pixels, context),
             ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"], rec.seed)
    rec.finish()


main()
