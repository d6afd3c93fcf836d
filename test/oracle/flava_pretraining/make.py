"""What the generator's flava family leaves out, of transformers' FlavaForPreTraining: the codebook with its pictures, the patches that are hidden, and the
losses of pre-training with their gradients. The codebook's words fit the patches here, and the encoders differ in activation and epsilon.
Needs torch, transformers 5, peft and the oracle's generator.

    python make.py TOOLS OUT [--variant A|B]     # TOOLS: the folder with the generator's lib/; writes OUT/flava_pretraining and OUT/images

`cases.json` has `codebook[]` (pictures, words and their scores), `block_masks[]` (settings, the numbers in [0, 1) that were drawn, the mask), `pretraining[]`
(inputs, the losses that the reference gives, logits), and `gradients[]` and `lora[]` as in other families, with `batch`, the name of their pretraining case.
"""
import argparse
import os
import random
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
from lib import tok  # noqa: E402
from lib.common import (Recorder, generator_for, lora_run, record_gradients, rewrite_config, save_processor, save_weights, seeded_weights,  # noqa: E402
                        set_logit_scale)
from lib.images import load_rgb, make_images  # noqa: E402
from transformers import AutoTokenizer, FlavaConfig, FlavaForPreTraining, FlavaImageProcessorPil, FlavaModel, FlavaProcessor  # noqa: E402
from transformers.models.flava import image_processing_pil_flava as processing  # noqa: E402

CAPTIONS = ["a photo of a cat", "two dogs running in the park", "The image shows a small kitchen.", "x"]
LOSSES = {"mim": "mim", "mlm": "mlm", "itm": "itm", "mmm_image": "mmmImage", "mmm_text": "mmmText", "global_contrastive": "contrastive"}


class Draws:
    """Python's random functions on one recorded row of numbers in [0, 1)."""

    def __init__(self, seed):
        self.numbers, self.source = [], random.Random(seed)

    def next(self):
        self.numbers.append(self.source.random())
        return self.numbers[-1]

    def uniform(self, low, high):
        return low + (high - low) * self.next()

    def randint(self, low, high):
        return low + int(self.next() * (high - low + 1))


def block_masks(rec):
    """The reference's generator, which asks `random.uniform` and `random.randint`, on our numbers."""
    settings = [dict(input_size=14), dict(input_size=14, total_mask_patches=120, mask_group_min_patches=4, mask_group_max_patches=30),
                dict(input_size=rec.pick(4, 3), total_mask_patches=5, mask_group_min_patches=1, mask_group_max_aspect_ratio=2.0),
                dict(input_size=(6, 9), total_mask_patches=20, mask_group_min_patches=3, mask_group_min_aspect_ratio=0.5)]
    for i, one in enumerate(settings):
        for seed in range(3):
            draws = Draws(100 * rec.seed + 10 * i + seed)
            processing.random = draws
            mask = processing.FlavaMaskingGenerator(**one)()
            rec.case("block_masks", {"settings": one, "draws": draws.numbers, "mask": mask.int().flatten().tolist()})
    processing.random = random


def main():
    seed = {"A": 0, "B": 1}[args.variant]
    args.out.mkdir(parents=True, exist_ok=True)
    images = make_images(args.out, seed)
    torch.manual_seed(seed)
    rec = Recorder(args.out, "flava_pretraining", args.variant, seed)
    vocab = tok.bert(rec.model_dir, rec.seed, rec.pick(400, 460))
    tokenizer = AutoTokenizer.from_pretrained(rec.model_dir)
    size, patch, hidden, words = rec.pick((32, 8, 16, 24), (42, 14, 24, 40))
    side = size // patch
    common = dict(hidden_size=hidden, intermediate_size=rec.pick(24, 40), num_attention_heads=rec.pick(2, 3))
    weights = rec.pick({}, dict(mim_weight=0.5, mlm_weight=2.0, itm_weight=1.5, mmm_image_weight=0.25, mmm_text_weight=3.0, global_contrastive_weight=0.75))
    config = FlavaConfig(
        text_config=dict(common, num_hidden_layers=2, vocab_size=vocab, max_position_embeddings=48, hidden_act=rec.pick("gelu", "relu"), layer_norm_eps=1e-5),
        image_config=dict(common, num_hidden_layers=2, image_size=size, patch_size=patch, vocab_size=words, hidden_act=rec.pick("relu", "gelu"),
                          layer_norm_eps=1e-3, qkv_bias=rec.pick(True, False)),
        multimodal_config=dict(common, num_hidden_layers=rec.pick(1, 2), hidden_act=rec.pick("quick_gelu", "silu"), layer_norm_eps=1e-2),
        image_codebook_config=dict(hidden_size=rec.pick(8, 4), vocab_size=words, num_blocks_per_group=rec.pick(2, 3)),
        hidden_size=hidden, projection_dim=rec.pick(12, 20), **weights)
    config._attn_implementation = "eager"
    book = {"height": 8 * side, "width": 8 * side}
    pil = FlavaImageProcessorPil(size={"height": size, "width": size}, crop_size={"height": size, "width": size}, codebook_size=book,
                                 codebook_crop_size=book, input_size_patches=side, total_mask_patches=rec.pick(8, 5), mask_group_min_patches=1)
    full = seeded_weights(FlavaForPreTraining(config), rec.seed)
    set_logit_scale(full.flava)
    save_weights(full, rec.model_dir)
    rewrite_config(rec)
    save_processor(rec, FlavaProcessor(image_processor=pil, tokenizer=tokenizer), image_processor=pil, tokenizer=tokenizer)

    def fresh():
        return FlavaForPreTraining.from_pretrained(rec.model_dir, attn_implementation="eager").eval()

    block_masks(rec)
    model = fresh()
    files = [image["file"] for image in (images[0], images[3], images[4], images[5])]
    prepared = pil([load_rgb(rec.root / file) for file in files], return_codebook_pixels=True, return_tensors="pt")
    pixels, book_pixels = prepared["pixel_values"], prepared["codebook_pixel_values"]
    with torch.no_grad():
        scores, words = model.image_codebook(book_pixels), model.image_codebook.get_codebook_indices(book_pixels)
        odd = torch.rand(1, 3, 21, 35, generator=generator_for("odd", rec.seed))  # sides that no halving divides
        odd_scores = model.image_codebook(odd)
    top = scores.topk(2, dim=1).values
    rec.case("codebook", {"files": files, "pixel_values": rec.put("codebook.pixel_values", book_pixels), "logits": rec.put("codebook.logits", scores),
                          "words": rec.put("codebook.words", words.flatten(1)), "min_top2_gap": (top[:, 0] - top[:, 1]).min().item()})
    rec.case("codebook", {"pixel_values": rec.put("codebook.odd.pixel_values", odd), "logits": rec.put("codebook.odd.logits", odd_scores)})

    enc = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    ids, mask = enc["input_ids"], enc["attention_mask"]
    chosen = torch.rand(ids.shape, generator=generator_for("words", rec.seed)) < 0.4
    chosen = chosen & (ids != tokenizer.pad_token_id) & (ids != tokenizer.cls_token_id) & (ids != tokenizer.sep_token_id)
    chosen[torch.arange(4), 1] = True
    masked, labels = ids.masked_fill(chosen, tokenizer.mask_token_id), ids.masked_fill(~chosen, -100)
    patches = (torch.rand(4, side * side, generator=generator_for("patches", rec.seed)) < 0.4).int()
    patches[:, 0] = 1
    arrays = {"pixel_values": pixels, "bool_masked_pos": patches, "mim_labels": words.flatten(1), "input_ids": ids, "attention_mask": mask,
              "input_ids_masked": masked, "mlm_labels": labels, "some": torch.tensor([1, 0, 1, 0]), "none": torch.zeros(4, dtype=torch.long)}
    for name, value in arrays.items():
        rec.put(f"pretraining.{name}", value)
    picture, text = ["pixel_values", "bool_masked_pos", "mim_labels"], ["input_ids", "attention_mask", "input_ids_masked", "mlm_labels"]
    batches = {"pictures": picture, "texts": text, "pairs": picture + text, "pairs, some that do not belong": [*picture, *text, "some"],
               "pairs, none that belongs": [*picture, *text, "none"]}

    def inputs_of(names):
        out = {("itm_labels" if n in ("some", "none") else n): arrays[n].clone() for n in names}  # the reference writes into its labels
        if "bool_masked_pos" in out:
            out["bool_masked_pos"] = out["bool_masked_pos"].bool()
        return out

    for name, names in batches.items():
        with torch.no_grad():
            out = model(**inputs_of(names), return_loss=True)
        found = {ours: out.loss_info[theirs].item() for theirs, ours in LOSSES.items() if out.loss_info.get(theirs) is not None}
        rec.case("pretraining", {"name": name, "inputs": {("matches" if n in ("some", "none") else n): f"pretraining.{n}" for n in names},
                                 "losses": found, "total": out.loss.item()})

    def loss_of(name):
        return lambda m: m(**inputs_of(batches[name]), return_loss=True).loss

    codebook = [n for n, _ in model.named_parameters() if n.startswith("image_codebook.")]
    attention = "attention.attention.query.weight"
    for name, weights in {
        "pictures": ["flava.image_model.embeddings.mask_token", "mim_head.bias", "mim_head.transform.LayerNorm.weight"],
        "texts": ["flava.text_model.embeddings.word_embeddings.weight", "mlm_head.transform.dense.weight"],
        "pairs, some that do not belong": [
            "flava.image_model.embeddings.mask_token", f"flava.multimodal_model.encoder.layer.0.{attention}", "flava.multimodal_model.cls_token",
            f"flava.text_model.encoder.layer.0.{attention}", f"flava.image_model.encoder.layer.1.{attention}", "flava.logit_scale",
            "flava.image_to_mm_projection.weight", "itm_head.pooler.dense.weight", "mmm_text_head.decoder.weight", "mmm_image_head.decoder.weight"],
    }.items():
        entry = record_gradients(rec, name, model, loss_of(name), weights, {"mim_head.bias": "mim_head.decoder.bias"})  # its name in the file
        entry["batch"] = name
    assert codebook and all(dict(model.named_parameters())[n].grad is None for n in codebook)
    name = "pairs, some that do not belong"
    FlavaModel.get_input_embeddings = lambda self: self.text_model.embeddings.word_embeddings  # PEFT asks for it, and transformers 5.23 has none
    lora_run(rec, "lora", fresh, loss_of(name), lambda m: m(**inputs_of(batches[name])).itm_logits, ["query", "value"], rec.seed)
    rec.cases["lora"][-1]["batch"] = name
    rec.finish()


main()
