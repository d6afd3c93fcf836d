"""LLaVA-1.5-HD as an oracle family, in the layout of LLaVA's original repository: Llama, projector and config keys in one folder, the CLIP tower in
another, pictures padded to a large square and cut (`image_aspect_ratio: highres`), and all tiles' patches one behind the other. transformers' Llama and
CLIP compute; their composition and the tiling are written here. Needs torch, transformers 5, peft and the oracle's generator.

    python make.py TOOLS OUT [--variant A|B]     # TOOLS: the folder with the generator's lib/; writes OUT/llava_hd and OUT/images
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
from lib import tok  # noqa: E402
from lib.common import (Recorder, capture, capture_output, lora_run, record_gradients, save_state, seeded_weights, write_json)  # noqa: E402
from lib.decoding import masked_labels  # noqa: E402
from lib.images import load_rgb, make_images  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM  # noqa: E402

IMAGE = -200
MEAN = (0.48145466, 0.4578275, 0.40821073)


class Tower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.vision_tower = CLIPVisionModel(config)


def build(text, vision):
    """LlamaForCausalLM with the parts that LLaVA's own code puts into its `model`."""
    model = LlamaForCausalLM(LlamaConfig(**text, attn_implementation="eager"))
    wide, width = vision["hidden_size"], text["hidden_size"]
    model.model.mm_projector = nn.Sequential(nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width))
    model.model.vision_tower = Tower(CLIPVisionConfig(**vision, attn_implementation="eager"))
    return model


def tower_name(name):
    """The name in a CLIP checkpoint of a tower's parameter, whichever way the library spells it."""
    return "vision_model." + name.split("vision_tower.vision_tower.")[1].removeprefix("vision_model.")


def embed(m, layer, ids, pixels):
    x = m.get_input_embeddings()(ids.clamp(min=0)).clone()
    if pixels is not None:
        states = m.model.vision_tower.vision_tower(pixels, output_hidden_states=True).hidden_states[layer][:, 1:]
        x[ids == IMAGE] = m.model.mm_projector(states).flatten(0, 1)
    return x


def cut(picture, side, size):
    """The whole picture squeezed into a tile, then the tiles of the picture on a square of `side`."""
    wide = max(picture.size)
    square = Image.new("RGB", (wide, wide), tuple(int(255 * m) for m in MEAN))
    square.paste(picture, ((wide - picture.width) // 2, (wide - picture.height) // 2))
    square = square.resize((side, side))
    count = side // size
    boxes = [(x * size, y * size, (x + 1) * size, (y + 1) * size) for y in range(count) for x in range(count)]
    return [picture.resize((size, size))] + [square.crop(box) for box in boxes]


def main():
    seed = {"A": 0, "B": 1}[args.variant]
    args.out.mkdir(parents=True, exist_ok=True)
    images = make_images(args.out, seed)
    torch.manual_seed(seed)
    rec = Recorder(args.out, "llava_hd", args.variant, seed)
    vocab = tok.llama(rec.model_dir, rec.seed, rec.pick(460, 520), added=[], metaspace="legacy", model_file=True)
    tokenizer = AutoTokenizer.from_pretrained(rec.model_dir)
    size, patch, tiles = rec.pick((28, 7), (32, 8)) + (rec.pick(2, 3),)
    layer, feature = rec.pick(-2, -1), "patch"
    vision = dict(hidden_size=rec.pick(32, 40), intermediate_size=rec.pick(48, 64), num_hidden_layers=rec.pick(3, 2), num_attention_heads=rec.pick(2, 4),
                  image_size=size, patch_size=patch, projection_dim=16)
    text = dict(vocab_size=vocab, hidden_size=rec.pick(32, 48), intermediate_size=rec.pick(56, 72), num_hidden_layers=rec.pick(2, 3),
                num_attention_heads=rec.pick(4, 6), num_key_value_heads=rec.pick(4, 3), max_position_embeddings=4096, rms_norm_eps=1e-5)
    config = {
        "_name_or_path": "llava-v1.5-7b", "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "pretraining_tp": 1, "hidden_act": "silu", "initializer_range": 0.02, "max_length": 4096, "rope_scaling": None,
        "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": True, **text,
        "freeze_mm_mlp_adapter": False, "freeze_mm_vision_resampler": False, "image_aspect_ratio": "highres",
        "image_grid_pinpoints": f"{size},{size * tiles}", "mm_hidden_size": vision["hidden_size"], "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None, "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": feature,
        "mm_vision_select_layer": layer, "mm_vision_tower": "./tower", "tune_mm_mlp_adapter": False, "tune_mm_vision_resampler": False,
        "unfreeze_mm_vision_tower": False, "use_mm_proj": True}

    def fresh():
        return seeded_weights(build(text, vision), rec.seed, "float16").eval()

    model = fresh()
    state = {k: v.to(torch.float16) for k, v in model.named_parameters()}
    own = {k: v for k, v in state.items() if "vision_tower" not in k}
    own.update({f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2) for i in range(text["num_hidden_layers"])})  # as old files have them
    save_state(own, rec.model_dir, shards=rec.pick(2, 1))
    processor = {"crop_size": {"height": size, "width": size}, "do_center_crop": True, "do_normalize": True, "do_resize": True,
                 "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": list(MEAN), "image_std": [0.26862954, 0.26130258, 0.27577711],
                 "resample": 3, "size": {"shortest_edge": size}}
    for folder in (rec.model_dir, rec.model_dir / "tower"):
        write_json(folder / "preprocessor_config.json", processor)
    save_state({tower_name(k): v for k, v in state.items() if "vision_tower" in k}, rec.model_dir / "tower")
    write_json(rec.model_dir / "tower" / "config.json", {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 16,
                                                          "text_config": {}, "vision_config": vision, "torch_dtype": "float16"})
    write_json(rec.model_dir / "generation_config.json", {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
                                                          "transformers_version": "4.31.0"})
    tok.record(rec, tokenizer, rec.model_dir, ["USER: \nWhat are these? ASSISTANT:"])
    pil = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    def pixels_of(item):
        parts = cut(load_rgb(rec.root / item["file"]), size * tiles, size)
        return torch.cat([torch.as_tensor(pil(part, return_tensors="pt")["pixel_values"]) for part in parts])

    entries = [{"file": item["file"], "tiles": tiles**2 + 1, "pixel_values": rec.put(f"image.highres.{i}.pixel_values", pixels_of(item))}
               for i, item in enumerate(images)]
    rec.case("images", {"label": "highres", "pil_class": "process_highres_image of the original repository (emulated), CLIPImageProcessorPil",
                        "cases": entries, "note": "the whole picture first"})

    patches = (size // patch) ** 2 * (tiles**2 + 1)

    def encode(prompt):
        """Each part of the text by itself, as LLaVA's own code does: every part but the first loses its <s>."""
        ids = []
        for i, part in enumerate(prompt.split("<image>")):
            ids += ([IMAGE] * patches if i else [tokenizer.bos_token_id]) + tokenizer(part)["input_ids"][1:]
        return torch.tensor([ids])

    def prepare(name, which, prompt):
        ids, pixels = encode(prompt), torch.cat([pixels_of(images[i]) for i in which])
        return ids, pixels, [rec.put(f"{name}.input_ids", ids), rec.put(f"{name}.pixel_values", pixels)]

    system = "A chat between a curious human and an artificial intelligence assistant."
    prompt = f"{system} USER: <image>\nWhat is in this image? ASSISTANT:"
    ids, pixels, inputs = prepare("forward", [0], prompt)
    tower = model.model.vision_tower.vision_tower
    layers = tower.encoder.layers if hasattr(tower, "encoder") else tower.vision_model.encoder.layers
    with torch.no_grad(), capture(layers) as vis, capture(model.model.layers) as lm, capture_output(model.model.mm_projector) as proj, \
            capture_output(model.model.norm) as norm:
        out = model(inputs_embeds=embed(model, layer, ids, pixels), use_cache=False)
    rec.case("forward", {
        "name": "image_prompt", "text": prompt, "image": images[0]["file"], "inputs": inputs, "vision_hidden": rec.put_all("vision.hidden", vis),
        "projector": rec.put("projector", proj[0]), "image_features": rec.put("image_features", proj[0].flatten(0, 1)),
        "lm_hidden": rec.put_all("lm.hidden", lm), "lm_last_hidden_state": rec.put("lm.last_hidden_state", norm[0]),
        "logits": rec.put("logits", out.logits),
        "note": "projector: per tile, the whole picture first; image_features: its rows one behind the other"})
    two = f"{system} USER: <image>\n<image>\nCompare them. ASSISTANT:"
    two_ids, two_pixels, two_inputs = prepare("two", [1, 3], two)
    with torch.no_grad():
        logits = model(inputs_embeds=embed(model, layer, two_ids, two_pixels), use_cache=False).logits
    rec.case("forward", {"name": "two_images", "text": two, "images": [images[1]["file"], images[3]["file"]], "inputs": two_inputs,
                         "logits": rec.put("two.logits", logits)})
    for name, words, row, seen in (("image_prompt", prompt, ids, pixels), ("text_only", "The quick brown", encode("The quick brown"), None)):
        new, gaps, steps = [], [], []
        with torch.no_grad():
            for _ in range(16):
                last = model(inputs_embeds=embed(model, layer, torch.cat([row, torch.tensor([new], dtype=torch.long)], 1), seen)).logits[0, -1]
                top = last.topk(2)
                new.append(int(top.indices[0]))
                gaps.append(float(top.values[0] - top.values[1]))
                steps.append(last)
        rec.case("generation", {"name": name, "text": words, "input_ids": row[0].tolist(), "new_ids": new, "text_raw": tokenizer.decode(new),
                                "min_top2_gap": min(gaps), "step_logits": rec.put(f"generate.{name}.logits", torch.stack(steps))})
    labels = masked_labels(ids, 9)
    rec.put("loss.labels", labels)

    def logits_fn(m):
        inner = m.base_model.model if hasattr(m, "peft_config") else m
        return m(inputs_embeds=embed(inner, layer, ids, pixels)).logits

    def loss_fn(m):
        return F.cross_entropy(logits_fn(m)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    record_gradients(rec, "lm", model, loss_fn, ["model.mm_projector.0.weight", "model.mm_projector.2.bias", "model.layers.0.self_attn.k_proj.weight",
                                                 "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "lm_head.weight"])
    lora_run(rec, "lora", fresh, loss_fn, logits_fn, r"model\.layers.*\.(q_proj|v_proj|gate_proj)", rec.seed)
    with torch.no_grad():  # the library's hooks count the tower's layers twice once attentions were asked for: nothing above may do so
        assert torch.equal(logits_fn(model), out.logits)
    write_json(rec.model_dir / "config.json", config)
    rec.finish()


main()
