"""The two CLIP towers of a checkpoint as ONNX files, for onnxruntime-node:  python export_onnx.py CHECKPOINT FOLDER

Writes FOLDER/clip-image.onnx and FOLDER/clip-text.onnx in float32, the batch of any size. Needs the packages torch, transformers and onnx;
prints {"missing": [...]} and writes nothing where one of them is not there.
"""
import importlib.util, json, os, sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
NEEDED = ["torch", "transformers", "onnx"]


def export(checkpoint, folder):
    import torch
    from transformers import CLIPModel

    class Tower(torch.nn.Module):
        def __init__(self, tower, projection):
            super().__init__()
            self.tower, self.projection = tower, projection

        def forward(self, x):
            return self.projection(self.tower(x).pooler_output)

    model = CLIPModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
    side, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    image, text = Tower(model.vision_model, model.visual_projection), Tower(model.text_model, model.text_projection)
    examples = {"clip-image": (image, torch.zeros(2, 3, side, side)), "clip-text": (text, torch.ones(2, length, dtype=torch.long))}
    any_batch = {"x": {0: "batch"}, "y": {0: "batch"}}
    for name, (tower, x) in examples.items():
        torch.onnx.export(tower, (x,), os.path.join(folder, f"{name}.onnx"), input_names=["x"], output_names=["y"],
                          dynamic_axes=any_batch, opset_version=17, dynamo=False)


missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if not missing:
    export(*sys.argv[1:3])
print(json.dumps({"missing": missing}))
