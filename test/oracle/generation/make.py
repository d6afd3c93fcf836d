"""What transformers' own logits processors and `generate` give: python make.py  (torch 2.11, transformers 5.23; writes cases.json beside this file).

The models are the language parts of InternVL and of both BLIP-2 beside it (../FAMILY/model). Scores are rounded to 7 digits.
"""
import json
import os

import torch
import transformers
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.generation import logits_process as P

HERE = os.path.dirname(os.path.abspath(__file__))
VOCAB = 64


def numbers(row):
    return [None if x == float("-inf") else float(f"{x:.7g}") for x in row.tolist()]


def processors():
    g = torch.Generator().manual_seed(0)
    scores = (3 * torch.randn(4, VOCAB, generator=g)).float()
    scores[3] = torch.round(scores[3])  # ties
    ids = torch.randint(0, VOCAB, (4, 9), generator=g)
    eos = torch.tensor([5, 7])
    made = {
        "repetitionPenalty 1.3": [P.RepetitionPenaltyLogitsProcessor(1.3)],
        "repetitionPenalty 0.7": [P.RepetitionPenaltyLogitsProcessor(0.7)],
        "badWords": [P.NoBadWordsLogitsProcessor([[3], ids[0, -1:].tolist() + [11], ids[1, -2:].tolist() + [12], [1, 2, 13], [5]], eos)],
        "minNewTokens 4": [P.MinNewTokensLengthLogitsProcessor(6, 4, eos)],
        "minNewTokens 3": [P.MinNewTokensLengthLogitsProcessor(6, 3, eos)],
        "badTokenIds": [P.SuppressTokensLogitsProcessor([8, 9])],
        "temperature 0.6": [P.TemperatureLogitsWarper(0.6)],
        "topK 5": [P.TopKLogitsWarper(5)],
        "topP 0.7": [P.TopPLogitsWarper(0.7)],
        "topP 0.05": [P.TopPLogitsWarper(0.05)],
        "topP 0.99": [P.TopPLogitsWarper(0.99)],
        "minP 0.1": [P.MinPLogitsWarper(0.1)],
    }
    made["all"] = [made[k][0] for k in ("repetitionPenalty 1.3", "badWords", "minNewTokens 4", "badTokenIds", "temperature 0.6")]
    made["all"] += [P.TopKLogitsWarper(20), P.TopPLogitsWarper(0.9), P.MinPLogitsWarper(0.02)]
    cases = {}
    for name, steps in made.items():
        x = scores.clone()
        for step in steps:
            x = step(ids, x)
        rows = 3 if "topP" in name or name == "all" else 4  # which of equal scores top-p leaves out is torch's secret
        cases[name] = [numbers(row) for row in x[:rows]]
    bad = [[3], ids[0, -1:].tolist() + [11], ids[1, -2:].tolist() + [12], [1, 2, 13], [5]]
    return {"scores": [numbers(row) for row in scores], "ids": ids.tolist(), "eos": eos.tolist(), "promptLength": 6, "badWords": bad, "cases": cases}


SETTINGS = [
    {"numBeams": 1, "repetitionPenalty": 1.4},
    {"numBeams": 1, "minNewTokens": 9, "eos": 2},
    {"numBeams": 3},
    {"numBeams": 3, "eos": 2},
    {"numBeams": 4, "eos": 3, "earlyStopping": True},
    {"numBeams": 4, "eos": 3, "earlyStopping": "never", "lengthPenalty": 2.0},
    {"numBeams": 4, "eos": 3, "lengthPenalty": -1.0},
    {"numBeams": 3, "every": 9},
    {"numBeams": 4, "every": 9, "earlyStopping": True},
    {"numBeams": 4, "every": 25, "earlyStopping": True, "lengthPenalty": 0.5},
    {"numBeams": 3, "every": 25, "earlyStopping": "never"},
    {"numBeams": 3, "every": 25, "lengthPenalty": -0.5},
    {"numBeams": 2, "eos": 4, "lengthPenalty": 0.0, "repetitionPenalty": 1.5, "minNewTokens": 3},
]


def generation(name, prompt_lengths, settings, part=lambda model: model):
    """Answers of a family's language model to prompts of random ids."""
    whole = AutoModelForImageTextToText.from_pretrained(os.path.join(HERE, "..", name, "model"), dtype=torch.float32, attn_implementation="eager").eval()
    model = part(whole)
    for owner in whole.modules():
        if getattr(owner, "generation_config", None) is not None:
            owner.generation_config.eos_token_id = None
    is_encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
    vocab = model.get_input_embeddings().weight.shape[0] - 8
    g = torch.Generator().manual_seed(1)
    cases = []
    for n in prompt_lengths:
        prompt = torch.randint(3, min(450, vocab), (1, n), generator=g)
        first = 1 if is_encoder_decoder else n
        greedy = model.generate(input_ids=prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[0, first:].tolist()
        for s in settings:
            eos = sorted(set(greedy[3:3 + s["eos"]])) if "eos" in s else None
            eos = list(range(1, vocab, s["every"])) if "every" in s else eos
            config = GenerationConfig(
                max_new_tokens=12, do_sample=False, num_beams=s["numBeams"], num_return_sequences=s["numBeams"], eos_token_id=eos, pad_token_id=0,
                length_penalty=s.get("lengthPenalty", 1.0), early_stopping=s.get("earlyStopping", False),
                repetition_penalty=s.get("repetitionPenalty", 1.0), min_new_tokens=s.get("minNewTokens"),
                return_dict_in_generate=True, output_scores=True)
            if is_encoder_decoder:
                config.decoder_start_token_id = model.config.decoder_start_token_id
            with torch.no_grad():
                out = model.generate(input_ids=prompt, generation_config=config)
            answers = []
            for i, row in enumerate(out.sequences[:, first:].tolist()):
                if eos:  # what follows an end is filled up
                    ends = [k for k, x in enumerate(row) if x in eos]
                    row = row[:ends[0] + 1] if ends else row
                answers.append({"ids": row, **({"score": round(out.sequences_scores[i].item(), 6)} if s["numBeams"] > 1 else {})})
            options = {k: v for k, v in s.items() if k not in ("eos", "every")}
            cases.append({"family": name, "prompt": prompt[0].tolist(), "ends": eos or [], "options": options, "answers": answers})
    return cases


def language(model):
    return model.language_model if hasattr(model, "language_model") else model.model.language_model


cases = generation("internvl_hf", (5, 12, 70), SETTINGS)
for family in ("blip2_t5", "blip2_opt"):
    cases += generation(family, (6,), SETTINGS[:4] + SETTINGS[8:], language)
out = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "processors": processors(), "generation": cases}
with open(os.path.join(HERE, "cases.json"), "w") as f:
    json.dump(out, f, separators=(",", ":"))
    f.write("\n")
