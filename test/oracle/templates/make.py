"""Prompts of the original programs (InternVL, LLaVA 1 and 1.6, MiniGPT-4, Ovis), by a small model of the conversation classes that they all took over from
FastChat: a separator style, two role names, one or two separators. Ids are those that transformers' tokenizers of the families beside this folder give
to the pieces around the pictures, special tokens around the first alone.

    python make.py  (transformers 5; reads ../FAMILY/model, writes cases.json beside this file)
"""
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
from transformers import AutoTokenizer  # noqa: E402

HERE = Path(__file__).resolve().parent
IMAGE = "<image>"
CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n")
VICUNA = ("A chat between a curious {} and an artificial intelligence assistant. "
          "The assistant gives helpful, detailed, and polite answers to the {}'s questions.")
INTERNVL = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
INTERNVL_2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
LLAMA_2 = ("You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
           "and assist the user with a variety of tasks using natural language.")
MINIGPT4 = ("Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
            "Please answer my questions.")
PICTURE = "<Img><ImageHere></Img>"


def single(system, roles, seps, turns):
    """SINGLE and MPT: role and message, then the separator, also behind the system text."""
    text = system + seps[0]
    for i, message in enumerate(turns):
        text += roles[i % 2] + (message + seps[0] if message is not None else "")
    return text


def two(system, roles, seps, turns):
    """TWO: separators take turns."""
    text = system + seps[0]
    for i, message in enumerate(turns):
        text += roles[i % 2] + (f": {message}{seps[i % 2]}" if message is not None else ":")
    return text


def llama_2(system, roles, seps, turns):
    """LLAMA_2: the system text is wrapped into the first message, a user's message into [INST]."""
    text = ""
    for i, message in enumerate(turns):
        if message is None:
            continue
        if i == 0 and system:
            message = f"<<SYS>>\n{system}\n<</SYS>>\n\n{message}"
        text += f"{seps[0]}[INST] {message} [/INST]" if i % 2 == 0 else f" {message} {seps[1]}"
    return text[len(seps[0]):]


def chatml(text):
    return "<|im_start|>system\n" + text


# name: style, system text, how a system text of the caller's is written, roles, separators, a picture with what follows it, family whose tokenizer is used
TEMPLATES = {
    "internlm2-chat": (single, INTERNVL, chatml, CHATML, ("<|im_end|>",), (IMAGE, "\n"), "internvl_chat_internlm2"),
    "Hermes-2": (single, INTERNVL, chatml, CHATML, ("<|im_end|>",), (IMAGE, "\n"), "internvl_chat_qwen2"),
    "internvl2_5": (single, INTERNVL_2_5, chatml, CHATML, ("<|im_end|>\n",), (IMAGE, "\n"), "internvl_chat_qwen2"),
    "phi3-chat": (single, INTERNVL, "<|system|>\n{}".format, ("<|user|>\n", "<|assistant|>\n"), ("<|end|>",), (IMAGE, "\n"), "internvl_chat_phi3"),
    "internvl_zh": (two, "", str, ("<human>", "<bot>"), (" ", "</s>"), (IMAGE, "\n"), "llava"),
    "llava_v1": (two, VICUNA.format("human", "human"), str, ("USER", "ASSISTANT"), (" ", "</s>"), (IMAGE, "\n"), "llava"),
    "vicuna_v1": (two, VICUNA.format("user", "user"), str, ("USER", "ASSISTANT"), (" ", "</s>"), (IMAGE, "\n"), "llava_hd"),
    "llava_llama_2": (llama_2, LLAMA_2, str, None, ("<s>", "</s>"), (IMAGE, "\n"), "llava"),
    "mistral_instruct": (llama_2, "", str, None, ("", "</s>"), (IMAGE, "\n"), "llava_next"),
    "chatml_direct": (single, "Answer the questions.", chatml, CHATML, ("<|im_end|>",), (IMAGE, "\n"), "llava_onevision"),
    "minigpt4": (single, "", str, ("###Human: ", " ###Assistant: "), ("",), (PICTURE, " "), "minigpt4"),
    "minigpt4-vicuna": (single, MINIGPT4, str, ("Human: ", "Assistant: "), ("###",), (PICTURE, " "), "minigpt4"),
    "minigpt4-llama2": (single, MINIGPT4, str, ("<s>[INST] ", " [/INST] "), ("",), (PICTURE, " "), "minigpt4"),
    "minigptv2": (single, "", str, ("<s>[INST] ", " [/INST]"), ("",), (PICTURE, " "), "minigpt4"),
    "ovis2": (single, "You are a helpful assistant.", chatml, CHATML, ("<|im_end|>\n",), (IMAGE, "\n"), "ovis2"),
}


def main():
    chat = []
    for name, (style, default, frame, roles, seps, (image, behind), family) in TEMPLATES.items():
        folder = f"{family}/model" + ("/llama" if family == "minigpt4" else "")
        path = HERE.parent / folder
        if family == "internvl_chat_internlm2":  # SentencePiece with the generator's own split at added tokens: its own family checks the ids
            folder, path = "internvl_chat_qwen2/model", HERE.parent / "internvl_chat_qwen2" / "model"
        with tempfile.TemporaryDirectory() as alone:  # without a config.json whose auto_map makes transformers ask whether to run code
            for file in [*path.glob("*token*"), *path.glob("vocab*"), *path.glob("merges*"), path / "config.json"]:
                if "auto_map" in file.read_text(errors="ignore"):
                    continue
                shutil.copy(file, alone)
            tokenizer = AutoTokenizer.from_pretrained(alone)
        first = f"{image}{behind}What is in this image?"
        cases = [("single", [first, None], None), ("system", ["hello", None], "You help."),
                 ("multi_turn", [first, "There are three.", "请描述 them", None], None),
                 ("multi_image", [f"{image}{behind}{image}{behind}Compare", None], None)]
        for case, turns, system in cases:
            text = style(frame(default if system is None else system), roles, seps, turns)
            said = [[role, words] for role, words in zip(["user", "assistant"] * 2, turns)]
            mark = "<ImageHere>" if image == PICTURE else image
            pieces = [tokenizer(piece, add_special_tokens=i == 0)["input_ids"] for i, piece in enumerate(text.split(mark))]
            chat.append({"name": f"{name} {case}", "template": name, "turns": said, "system": system, "image_token": mark,
                         "tokenizer": folder, "rendered_with_generation_prompt": text, "pieces": pieces})
    rows = ",\n".join(json.dumps(case, ensure_ascii=False) for case in chat)
    (HERE / "cases.json").write_text(f'{{"family": "templates", "chat": [\n{rows}\n]}}\n')


main()
