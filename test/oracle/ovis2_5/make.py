"""Ovis2.5 as an oracle family: an emulation in PyTorch of the original repository's model (native-resolution ViT, visual tokenizer) around transformers'
Qwen3, with the published names of weights and config keys. Needs torch, transformers 5, peft and the oracle's generator.

    python make.py TOOLS OUT [--variant A|B]     # TOOLS: the folder with the generator's lib/; writes OUT/ovis2_5 and OUT/images

`cases.json` has the sections of the other families, and `thinking[]`: an answer in two phases, cut off by its budget.
"""
import argparse
import math
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
from lib.common import (Recorder, capture, capture_output, lora_run, read_json, record_gradients, save_state, seeded_weights,  # noqa: E402
                        write_json)
from lib.decoding import masked_labels  # noqa: E402
from lib.images import load_rgb, make_images  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, SiglipImageProcessorPil  # noqa: E402

IMAGE, ATOM, BEGIN, END = -200, -300, -301, -302  # the last two indicators, -303 and -304, are for videos
INDICATORS = 4
THINK = ["<think>", "</think>"]
EMPTY_THINK = "<think>\n\n</think>\n\n"
EARLY_STOP = ("\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n</think>\n\n")


def smart_resize(height, width, factor, min_pixels, max_pixels):
    """Whole multiples of `factor` whose product lies between the limits; very thin pictures do not occur here."""
    if min(height, width) < factor:
        scale = factor / min(height, width)
        height, width = (factor, round(scale * width)) if height < width else (round(scale * height), factor)
    high, wide = (round(side / factor) * factor for side in (height, width))
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high, wide = (math.floor(side / shrink / factor) * factor for side in (height, width))
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return high, wide


class Table(nn.Embedding):
    """Rows by their numbers, or mixtures of rows by shares."""

    def forward(self, x):
        return x @ self.weight if x.is_floating_point() else super().forward(x)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, cosine, sine):
        def heads(y):
            return y.view(len(x), self.heads, -1).transpose(0, 1)  # heads x patches x width of a head

        def turn(y):
            a, b = y.chunk(2, -1)
            return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)

        q, k, v = turn(heads(self.q_proj(x))), turn(heads(self.k_proj(x))), heads(self.v_proj(x))
        pattern = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), -1)
        return self.out_proj((pattern @ v).transpose(0, 1).reshape(len(x), -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c["hidden_size"], c["intermediate_size"]), nn.Linear(c["intermediate_size"], c["hidden_size"])

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(c["hidden_size"], eps=1e-6)
        self.self_attn = Attention(c)
        self.layer_norm2 = nn.LayerNorm(c["hidden_size"], eps=1e-6)
        self.mlp = Mlp(c)

    def forward(self, x, cosine, sine):
        x = x + self.self_attn(self.layer_norm1(x), cosine, sine)
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, c["hidden_size"], c["patch_size"], c["patch_size"])
        self.side = c["image_size"] // c["patch_size"]
        self.position_embedding = nn.Embedding(self.side**2, c["hidden_size"])

    def forward(self, patches, rows, columns, order):
        table = self.position_embedding.weight.T.reshape(1, -1, self.side, self.side)
        resized = F.interpolate(table, size=(rows, columns), mode="bicubic", align_corners=False)
        return self.patch_embedding(patches).flatten(1) + resized[0].flatten(1).T[order]


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))


class Transformer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(c), Encoder(c)
        self.post_layernorm = nn.LayerNorm(c["hidden_size"], eps=1e-6)  # in the file, and read by nothing


class Vit(nn.Module):
    """All patches of one picture, in the order in which stride x stride neighbours follow each other."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.vision_model = Transformer(c)

    def order(self, rows, columns):
        stride = self.config["hidden_stride"]
        places = torch.arange(rows * columns).view(rows // stride, stride, columns // stride, stride)
        return places.permute(0, 2, 1, 3).flatten()

    def forward(self, pixels):  # 3 x H x W
        c, size = self.config, self.config["patch_size"]
        rows, columns = pixels.shape[1] // size, pixels.shape[2] // size
        order = self.order(rows, columns)
        patches = pixels.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4).reshape(-1, 3, size, size)[order]
        x = self.vision_model.embeddings(patches, rows, columns, order)
        quarter = c["hidden_size"] // c["num_attention_heads"] // 4
        frequencies = 10000.0 ** (-torch.arange(quarter) / quarter)
        angles = torch.cat([torch.outer(order // columns, frequencies), torch.outer(order % columns, frequencies)], -1)  # row, then column
        for layer in self.vision_model.encoder.layers:
            x = layer(x, angles.cos(), angles.sin())
        return x


class VisualTokenizer(nn.Module):
    def __init__(self, c, words):
        super().__init__()
        self.vit = Vit(c)
        self.head = nn.Sequential(nn.Linear(c["hidden_size"] * c["hidden_stride"] ** 2, words - INDICATORS, bias=False),
                                  nn.LayerNorm(words - INDICATORS))

    def forward(self, pixels):
        x = self.vit(pixels)
        return torch.softmax(self.head(x.reshape(len(x) // self.vit.config["hidden_stride"] ** 2, -1)).float(), -1)


class Ovis(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.llm = Qwen3ForCausalLM(Qwen3Config(**config["llm_config"], attn_implementation="eager"))
        self.visual_tokenizer = VisualTokenizer(config["vit_config"], config["visual_vocab_size"])
        self.vte = Table(config["visual_vocab_size"], config["hidden_size"])

    def features(self, pictures):
        return [F.pad(self.visual_tokenizer(p), (0, INDICATORS)) @ self.vte.weight for p in pictures]

    def embed(self, ids, pictures):
        x = self.llm.get_input_embeddings()(ids.clamp(min=0)).clone()
        if pictures:
            for i in range(INDICATORS):
                x[ids == BEGIN - i] = self.vte.weight[i - INDICATORS]
            x[ids == ATOM] = torch.cat(self.features(pictures))
        return x

    def forward(self, ids, pictures=(), **kw):
        return self.llm(inputs_embeds=self.embed(ids, pictures), use_cache=False, **kw)


ROLES = {"system": "<|im_start|>system\n", "human": "<|im_start|>user\n", "gpt": "<|im_start|>assistant\n"}


def render(turns, thinking):
    """The prompt that an answer follows."""
    said = "".join(ROLES[who] + text + "<|im_end|>\n" for who, text in turns)
    return said + ROLES["gpt"] + ("" if thinking else EMPTY_THINK)


def encode(tokenizer, text, atoms):
    """Token ids with each picture's tokens between its indicators."""
    ids, counts = [], iter(atoms)
    for i, part in enumerate(text.split("<image>")):
        ids += ([BEGIN] + [ATOM] * next(counts) + [END] if i else []) + tokenizer(part, add_special_tokens=False)["input_ids"]
    return ids


def greedy(model, ids, pictures, count):
    """Token by token, each from the whole sequence."""
    new, gaps, steps = [], [], []
    with torch.no_grad():
        for _ in range(count):
            last = model(torch.tensor([ids + new]), pictures).logits[0, -1]
            top = last.topk(2)
            new.append(int(top.indices[0]))
            gaps.append(float(top.values[0] - top.values[1]))
            steps.append(last)
    return new, gaps, steps


def configuration(rec, vocab, end):
    vit = {"model_type": "siglip2_navit", "hidden_size": rec.pick(32, 64), "intermediate_size": rec.pick(48, 80), "num_hidden_layers": rec.pick(2, 3),
           "num_attention_heads": rec.pick(2, 4), "num_channels": 3, "num_patches": -1, "image_size": rec.pick(40, 48), "patch_size": 8,
           "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "hidden_stride": 2, "window_size": 112,
           "fullatt_block_indexes": None, "temporal_patch_size": 1, "preserve_original_pe": True, "use_rope": True, "torch_dtype": "bfloat16"}
    llm = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": vocab, "hidden_size": rec.pick(32, 48),
           "intermediate_size": rec.pick(64, 72), "num_hidden_layers": rec.pick(2, 3), "num_attention_heads": rec.pick(4, 6), "num_key_value_heads": 2,
           "head_dim": rec.pick(12, 16), "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 40960, "hidden_act": "silu",
           "attention_bias": False, "attention_dropout": 0.0, "max_window_layers": 36, "sliding_window": None, "use_sliding_window": False,
           "tie_word_embeddings": rec.pick(True, False), "eos_token_id": end, "torch_dtype": "bfloat16", "use_cache": True}
    return {"architectures": ["Ovis2_5"], "model_type": "ovis2_5", "conversation_formatter_class": "Qwen3ConversationFormatter",
            "auto_map": {"AutoConfig": "configuration_ovis2_5.Ovis2_5_Config", "AutoModelForCausalLM": "modeling_ovis2_5.Ovis2_5"},
            "hidden_size": llm["hidden_size"], "visual_vocab_size": rec.pick(44, 60), "llm_config": llm, "vit_config": vit,
            "torch_dtype": "bfloat16", "transformers_version": "4.51.3", "use_cache": True}


def plain_think_tokens(folder):
    """<think> and </think> are added tokens, but not special ones: a decoded answer shows them."""
    path = folder / "tokenizer.json"
    raw = read_json(path)
    for token in raw["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in THINK
    write_json(path, raw)
    path = folder / "tokenizer_config.json"
    raw = read_json(path)
    for token in raw.get("added_tokens_decoder", {}).values():
        token["special"] = token["special"] and token["content"] not in THINK
    raw["additional_special_tokens"] = [t for t in raw["additional_special_tokens"] if t not in THINK]
    write_json(path, raw)
    path = folder / "special_tokens_map.json"
    raw = read_json(path)
    raw["additional_special_tokens"] = [t for t in raw["additional_special_tokens"] if t not in THINK]
    write_json(path, raw)


def main():
    seed = {"A": 0, "B": 1}[args.variant]
    args.out.mkdir(parents=True, exist_ok=True)
    images = make_images(args.out, seed)
    torch.manual_seed(seed)
    rec = Recorder(args.out, "ovis2_5", args.variant, seed)
    vocab = tok.qwen2(rec.model_dir, rec.seed, rec.pick(190, 260), added=THINK)
    plain_think_tokens(rec.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(rec.model_dir)
    end, think_end = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "</think>"))
    config = configuration(rec, vocab, end)
    write_json(rec.model_dir / "generation_config.json", {"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id, "transformers_version": "4.51.3"})
    limits = {"min_pixels": 1024, "max_pixels": rec.pick(4096, 6400)}
    write_json(rec.model_dir / "preprocessor_config.json", {
        "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor", "resample": 3, "rescale_factor": 1 / 255, "size": {"height": 512, "width": 512}, **limits})

    def fresh():
        return seeded_weights(Ovis(config), rec.seed, "bfloat16").eval()

    model = fresh()
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items() if not (k == "llm.lm_head.weight" and config["llm_config"]["tie_word_embeddings"])}
    save_state(state, rec.model_dir, shards=rec.pick(1, 2))
    tok.record(rec, tokenizer, rec.model_dir, ["<|im_start|>user\nhi<|im_end|>\n<think>\n\n</think>\n\nanswer", "a <think> b </think>"])

    factor = config["vit_config"]["patch_size"] * config["vit_config"]["hidden_stride"]

    def pixels_of(item):
        picture = load_rgb(rec.root / item["file"])
        high, wide = smart_resize(picture.height, picture.width, factor, **limits)
        pil = SiglipImageProcessorPil(size={"height": high, "width": wide}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3)
        return torch.as_tensor(pil(picture, return_tensors="pt")["pixel_values"])

    entries = []
    for i, item in enumerate(images):
        entries.append({"file": item["file"], "tiles": 1, "pixel_values": rec.put(f"image.native.{i}.pixel_values", pixels_of(item))})
    rec.case("images", {"label": "native", "pil_class": "smart_resize of the original repository (emulated), SiglipImageProcessorPil", "cases": entries,
                        "note": f"{limits}; every side a multiple of {factor}"})

    chats = [("single", [("human", "<image>\nWhat is in this image?")], False),
             ("single_thinking", [("human", "<image>\nWhat is in this image?")], True),
             ("multi_turn", [("human", "<image>\nhow many?"), ("gpt", "There are three."), ("human", "请描述 them 🙂\n")], False),
             ("multi_image", [("human", "Compare <image> with <image>")], True),
             ("system", [("system", "You help."), ("human", "hello")], False)]
    for name, turns, thinking in chats:
        text = render(turns, thinking)
        rec.case("chat", {"name": name, "turns": turns, "thinking": thinking, "rendered_with_generation_prompt": text,
                          "ids": encode(tokenizer, text, [2] * text.count("<image>"))})

    def prepare(name, which, question):
        pictures = [pixels_of(images[i]) for i in which]
        atoms = [p.shape[2] * p.shape[3] // factor**2 for p in pictures]
        text = render([("human", question)], False)
        ids = torch.tensor([encode(tokenizer, text, atoms)])
        return text, ids, [p[0] for p in pictures], [rec.put(f"{name}.input_ids", ids)] + [
            rec.put(f"{name}.pixel_values.{i}", p) for i, p in enumerate(pictures)]

    text, ids, pictures, inputs = prepare("forward", [0], "<image>\nWhat is in this image?")
    grid = [pictures[0].shape[1] // config["vit_config"]["patch_size"], pictures[0].shape[2] // config["vit_config"]["patch_size"]]
    order = model.visual_tokenizer.vit.order(*grid)
    with torch.no_grad(), capture(model.visual_tokenizer.vit.vision_model.encoder.layers) as vis, capture(model.llm.model.layers) as lm, \
            capture_output(model.visual_tokenizer) as tokens, capture_output(model.llm.model.norm) as norm:
        out = model(ids, pictures, output_attentions=True)
        features = model.features(pictures)[0]
    by_rows = [torch.empty_like(v).index_copy_(0, order, v)[None] for v in vis]
    rec.case("forward", {
        "name": "image_prompt", "text": text, "image": images[0]["file"], "inputs": inputs, "patch_grid": grid,
        "vision_hidden": rec.put_all("vision.hidden", by_rows), "visual_tokens": rec.put("visual_tokens", tokens[0][None]),
        "image_features": rec.put("image_features", features[None]),
        "indicator_features": rec.put("indicator_features", model.vte.weight[-INDICATORS:]), "lm_hidden": rec.put_all("lm.hidden", lm),
        "lm_attention_layer0": rec.put("lm.attention.0", out.attentions[0]), "lm_last_hidden_state": rec.put("lm.last_hidden_state", norm[0]),
        "logits": rec.put("logits", out.logits),
        "note": "vision_hidden: patches row by row, though the original orders them by groups; visual tokens row by row, without the 4 indicators"})
    two = prepare("two", [1, 4], "<image><image>\nCompare them.")
    with torch.no_grad():
        logits = model(two[1], two[2]).logits
    rec.case("forward", {"name": "two_images", "text": two[0], "images": [images[1]["file"], images[4]["file"]], "inputs": two[3],
                         "logits": rec.put("two.logits", logits)})
    plain = tokenizer("The quick brown", add_special_tokens=False)["input_ids"]
    for name, prompt, row, seen in (("image_prompt", text, ids[0].tolist(), pictures), ("two_images", two[0], two[1][0].tolist(), two[2]),
                                    ("text_only", "The quick brown", plain, [])):
        new, gaps, steps = greedy(model, row, seen, 16)
        rec.case("generation", {"name": name, "text": prompt, "input_ids": row, "new_ids": new, "text_raw": tokenizer.decode(new),
                                "min_top2_gap": min(gaps), "step_logits": rec.put(f"generate.{name}.logits", torch.stack(steps))})

    for budget, most in ((5, 90), (12, 60)):
        think_text = render([("human", "<image>\nWhat is in this image?")], True)
        start = encode(tokenizer, think_text, [int((ids == ATOM).sum())])
        first = greedy(model, start, pictures, budget)[0]
        first = first[:first.index(end) + 1] if end in first else first
        new = list(first)
        if end not in first:
            new += [] if think_end in first else tokenizer(EARLY_STOP, add_special_tokens=False)["input_ids"]
            rest = greedy(model, start + new, pictures, max(0, most - len(new)))[0]
            new += rest[:rest.index(end) + 1] if end in rest else rest
        rec.case("thinking", {"text": think_text, "image": images[0]["file"], "budget": budget, "max_new_tokens": most, "new_ids": new,
                              "early_stop": EARLY_STOP, "think_end": think_end, "cut_off": think_end not in first and end not in first,
                              "note": "greedy; phase 1 has `budget` tokens; without </think> or <|im_end|> in it the early stop follows, then phase 2"})

    labels = masked_labels(ids, 9)
    rec.put("loss.labels", labels)

    def loss_fn(m):
        return F.cross_entropy(m(ids, pictures).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    record_gradients(rec, "lm", model, loss_fn, [
        "vte.weight", "visual_tokenizer.head.0.weight", "visual_tokenizer.head.1.bias", "visual_tokenizer.vit.vision_model.embeddings.patch_embedding.weight",
        "visual_tokenizer.vit.vision_model.embeddings.position_embedding.weight",
        "visual_tokenizer.vit.vision_model.encoder.layers.0.self_attn.q_proj.weight", "llm.model.layers.0.self_attn.q_norm.weight",
        "llm.model.layers.1.self_attn.k_norm.weight", "llm.model.layers.0.self_attn.k_proj.weight", "llm.model.embed_tokens.weight"])
    lora_run(rec, "lora", fresh, loss_fn, lambda m: m(ids, pictures).logits, r".*llm.*\.(q_proj|k_proj|v_proj|o_proj)", rec.seed)
    write_json(rec.model_dir / "config.json", config)  # last: its auto_map makes transformers ask whether to run code
    rec.info.update(model_class="Ovis2_5 with Qwen3ForCausalLM", weights_dtype="bfloat16", real=False)
    rec.finish()


main()
