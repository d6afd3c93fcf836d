"""Answers of torch, transformers and peft to jobs given as JSON on stdin, as JSON on the last line of stdout. See reference.ts."""
import json
import sys
import warnings

import torch

torch.manual_seed(0)
torch.set_num_threads(2)


def logits(job):
    """Logits and unit embeddings of a CLIP folder, in the dtype and with the adapter that are named; every warning of PEFT about the file is an answer too."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import CLIPModel

    dtype = getattr(torch, job.get("dtype", "float32"))
    model = CLIPModel.from_pretrained(job["model"], dtype=dtype, attn_implementation="eager")
    said = []
    if job.get("adapter"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(model, job["adapter"])
        said = [str(w.message) for w in caught if "adapter" in str(w.message).lower()]
        if job.get("merge"):
            model = model.merge_and_unload()
    model.eval()
    arrays = load_file(job["arrays"])
    with torch.no_grad():
        out = model(
            input_ids=arrays["forward.input_ids"].long(),
            attention_mask=arrays["forward.attention_mask"].long(),
            pixel_values=arrays["forward.pixel_values"].to(dtype),
        )
    embeddings = {"images": out.image_embeds.flatten().tolist(), "texts": out.text_embeds.flatten().tolist()}
    return {"logits": out.logits_per_image.flatten().tolist(), **embeddings, "warnings": said}


def embeddings(job):
    """Embeddings that transformers' own processor and model give to pictures and texts."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="eager").eval()
    tokens = CLIPTokenizer.from_pretrained(job["model"])(job["texts"], padding=True, truncation=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(job["model"])([Image.open(path) for path in job["pictures"]], return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, **pixels)
    return {"images": out.image_embeds.flatten().tolist(), "texts": out.text_embeds.flatten().tolist(), "ids": tokens["input_ids"].tolist()}


def dual_encoder(job):
    """Writes a VisionTextDualEncoder of a small CLIP tower and BERT with random weights into a folder that has its tokenizer; embeddings of some inputs."""
    from transformers import BertConfig, CLIPVisionConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    vision = CLIPVisionConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=16)
    text = BertConfig(vocab_size=job["vocab"], hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=12)
    model = VisionTextDualEncoderModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim:
                p.copy_(torch.randn_like(p) * 0.2)
    model.save_pretrained(job["folder"])
    pixels = torch.randn(2, 3, 32, 32)
    ids, mask = torch.tensor(job["ids"]), torch.tensor(job["mask"])
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    return {
        "pixels": pixels.permute(0, 2, 3, 1).flatten().tolist(),
        "images": out.image_embeds.flatten().tolist(),
        "texts": out.text_embeds.flatten().tolist(),
        "logits": out.logits_per_image.flatten().tolist(),
    }


def flava_heads(job):
    """What FLAVA's heads guess of texts and of patches, some of them hidden: read alone, and together."""
    from safetensors.torch import load_file
    from transformers import FlavaForPreTraining

    model = FlavaForPreTraining.from_pretrained(job["model"], attn_implementation="eager").eval()
    arrays = load_file(job["arrays"])
    inputs = {k: arrays[f"forward.{k}"] for k in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        out = model.flava(**{k: v.float() if k == "pixel_values" else v.long() for k, v in inputs.items()})
        alone = model.mlm_head(out.text_embeddings)
        seeing = model.mmm_text_head(out.multimodal_embeddings[:, -inputs["input_ids"].shape[1] :])
        hidden = torch.tensor(job["hidden"])
        masked = model.flava.image_model(inputs["pixel_values"].float(), bool_masked_pos=hidden.bool())
        patches = model.mim_head(masked.last_hidden_state[:, 1:])
        patches_seeing = model.mmm_image_head(out.multimodal_embeddings[:, 2 : 2 + hidden.shape[1]])
    answers = {"alone": alone, "seeing": seeing, "patches": patches, "patches_seeing": patches_seeing}
    return {name: x.flatten().tolist() for name, x in answers.items()}


def retrieval(job):
    """Matching logits and contrastive similarities that transformers' own processor and BLIP-2 give to pairs of a picture and a text."""
    from PIL import Image
    from transformers import Blip2ForImageTextRetrieval, Blip2Processor, BlipImageProcessorPil

    model = Blip2ForImageTextRetrieval.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="eager").eval()
    processor = Blip2Processor.from_pretrained(job["model"])
    processor.image_processor = BlipImageProcessorPil.from_pretrained(job["model"])
    pictures = [Image.open(path) for path in job["pictures"]]
    inputs = processor(images=pictures, text=job["texts"], padding=True, return_tensors="pt")
    with torch.no_grad():
        matching = model(**inputs, use_image_text_matching_head=True).logits_per_image
        contrastive = model(**inputs, use_image_text_matching_head=False).logits_per_image
    return {"matching": matching.flatten().tolist(), "contrastive": contrastive.flatten().tolist()}


def schedule(job):
    from transformers import get_scheduler

    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(job["name"], optimiser, num_warmup_steps=job["warmup"], num_training_steps=job["steps"])
    rates = []
    for _ in range(job["steps"]):
        rates.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    return rates


def adamw(job):
    """Parameters after each step, with the same gradients each time scaled by the step."""
    start = torch.nn.Parameter(torch.tensor(job["start"]))
    optimiser = torch.optim.AdamW([start], lr=job["lr"], betas=[float(b) for b in job["betas"]], eps=job["eps"], weight_decay=job["weightDecay"])
    steps = []
    for gradient in job["gradients"]:
        start.grad = torch.tensor(gradient)
        if job["maxNorm"]:
            torch.nn.utils.clip_grad_norm_([start], job["maxNorm"])
        optimiser.step()
        steps.append(start.tolist())
    return steps


def lora(job):
    """Losses of AdamW steps of a PEFT adapter on a CLIP folder, with the products in bfloat16 (autocast) where `bfloat16` says so."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import CLIPModel

    base = CLIPModel.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, job["adapter"], is_trainable=True).eval()
    arrays = load_file(job["arrays"])
    inputs = dict(
        input_ids=arrays["forward.input_ids"].long(),
        attention_mask=arrays["forward.attention_mask"].long(),
        pixel_values=arrays["forward.pixel_values"],
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1.0, betas=job["betas"], eps=job["eps"], weight_decay=job["weightDecay"])
    losses = []
    for rate in job["rates"]:
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=job["bfloat16"]):
            loss = model(**inputs, return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, job["maxNorm"])
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def parameters(job):
    """How many numbers a CLIP of a config holds; nothing is allocated."""
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        model = CLIPModel(CLIPConfig.from_dict(job["config"]))
    return sum(p.numel() for p in model.parameters())


def answer(job):
    """The prompt that the chat template of an InternVL or Ovis2 makes of a picture and a question, its ids, and the scores of the answer's first token."""
    import transformers
    from PIL import Image
    from transformers import AutoProcessor

    family = {"internvl": ("GotOcr2", "InternVL"), "ovis2": ("Ovis2", "Ovis2")}[job.get("family", "internvl")]
    processor = AutoProcessor.from_pretrained(job["model"])
    processor.image_processor = getattr(transformers, f"{family[0]}ImageProcessorPil").from_pretrained(job["model"])
    model = getattr(transformers, f"{family[1]}ForConditionalGeneration").from_pretrained(job["model"], dtype=torch.float32, attn_implementation="eager").eval()
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": job["question"]}]}
    text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    inputs = processor(images=[Image.open(job["picture"])], text=[text], return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits[0, -1]
    return {"text": text, "ids": inputs["input_ids"][0].tolist(), "logits": scores.tolist()}


JOBS = {"dual_encoder": dual_encoder, "flava_heads": flava_heads, "answer": answer, "logits": logits, "embeddings": embeddings, "retrieval": retrieval, "schedule": schedule, "adamw": adamw, "lora": lora, "parameters": parameters}
print(json.dumps([JOBS[job.pop("kind")](job) for job in json.load(sys.stdin)]))
