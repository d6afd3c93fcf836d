"""What transformers' PIL processors make of a known picture: needs transformers 5, pillow and numpy.

    python make.py      # writes cases.json beside this script
"""
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import PIL
import transformers
from PIL import Image
from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil, ViTImageProcessorPil

HERE = Path(__file__).parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent / "resize"))
from make import pattern  # noqa: E402

SIZES = [(61, 47), (47, 61), (200, 30), (33, 340), (56, 56), (20, 20)]
CONFIGS = [
    (CLIPImageProcessorPil, {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    (CLIPImageProcessorPil, {"size": {"shortest_edge": 31}, "crop_size": {"height": 25, "width": 28}}),
    (CLIPImageProcessorPil, {"size": {"shortest_edge": 30}, "crop_size": {"height": 45, "width": 36}}),
    (CLIPImageProcessorPil, {"size": {"shortest_edge": 29}, "crop_size": {"height": 36, "width": 45}, "resample": 2}),
    (CLIPImageProcessorPil, {"do_resize": False, "crop_size": {"height": 40, "width": 40}}),
    (CLIPImageProcessorPil, {"size": {"height": 24, "width": 40}, "do_center_crop": False, "do_rescale": False, "resample": 1}),
    (CLIPImageProcessorPil, {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}, "do_normalize": False, "rescale_factor": 0.01}),
    (CLIPImageProcessorPil, {}),
    (SiglipImageProcessorPil, {"size": {"height": 33, "width": 47}}),
    (ViTImageProcessorPil, {"size": {"height": 32, "width": 32}}),
    (ViTImageProcessorPil, {}),
    (BlipImageProcessorPil, {"size": {"height": 40, "width": 40}}),
]

cases = []
for cls, config in CONFIGS:
    processor = cls(**config)
    for size in SIZES:
        values = processor(Image.fromarray(pattern(*size)), return_tensors="np").pixel_values[0].transpose(1, 2, 0)
        values = np.ascontiguousarray(values, dtype=np.float32)
        cases.append({"class": cls.__name__[:-3], "config": config, "pattern": size, "shape": values.shape,
                      "mean": float(values.astype(np.float64).mean()), "sha256": hashlib.sha256(values.tobytes()).hexdigest()})
out = {"transformers": transformers.__version__, "pillow": PIL.__version__, "cases": cases}
(HERE / "cases.json").write_text(json.dumps(out, indent=1) + "\n")
