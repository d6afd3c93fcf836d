"""How transformers' PIL processors cut a known picture into tiles, and what the original repositories' arithmetic gives where transformers
has no such processor: needs transformers 5, pillow and numpy.

    python make_tiles.py      # writes tiles.json beside this script
"""
import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import PIL
import transformers
from PIL import Image
from transformers import (FlavaImageProcessorPil, GotOcr2ImageProcessorPil, LlavaImageProcessorPil, LlavaNextImageProcessorPil,
                          LlavaOnevisionImageProcessorPil, Ovis2ImageProcessorPil)

HERE = Path(__file__).parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent / "resize"))
from make import pattern  # noqa: E402

SIZES = [(61, 47), (47, 61), (200, 30), (33, 340), (90, 90), (20, 20), (1, 1), (1, 400), (300, 2)]
SQUARE = {"size": {"height": 24, "width": 24}}
NEXT = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]}
MANY = [[a * 16, b * 16] for a in range(1, 5) for b in range(1, 5)]
ONE = {"size": {"height": 16, "width": 16}, "image_grid_pinpoints": MANY}
CONFIGS = [
    (GotOcr2ImageProcessorPil, SQUARE, {"crop_to_patches": True}),
    (GotOcr2ImageProcessorPil, {**SQUARE, "min_patches": 3, "max_patches": 6, "resample": 2}, {"crop_to_patches": True}),
    (GotOcr2ImageProcessorPil, SQUARE, {"crop_to_patches": True, "size": {"height": 20, "width": 28}, "max_patches": 5}),
    (GotOcr2ImageProcessorPil, SQUARE, {"crop_to_patches": True, "max_patches": 1}),
    (GotOcr2ImageProcessorPil, SQUARE, {"crop_to_patches": False}),
    (Ovis2ImageProcessorPil, {**SQUARE, "crop_to_patches": True}, {}),
    (Ovis2ImageProcessorPil, {**SQUARE, "crop_to_patches": True, "max_patches": 6}, {}),
    (Ovis2ImageProcessorPil, {**SQUARE, "crop_to_patches": True}, {"use_covering_area_grid": False, "min_patches": 2, "max_patches": 4}),
    (Ovis2ImageProcessorPil, SQUARE, {}),
    (LlavaNextImageProcessorPil, NEXT, {}),
    (LlavaNextImageProcessorPil, NEXT, {"image_grid_pinpoints": [[48, 48], [32, 64]]}),
    (LlavaOnevisionImageProcessorPil, ONE, {}),
    (LlavaOnevisionImageProcessorPil, ONE, {"pictures": 2}),
    (LlavaImageProcessorPil, {"do_pad": True, "size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}, {}),
    (LlavaImageProcessorPil, {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}}, {}),
    (FlavaImageProcessorPil, SQUARE | {"crop_size": {"height": 24, "width": 24}}, {}),
]


def digest(values):
    """values: (tiles, 3, H, W) -> shape and hash of (tiles, H, W, 3)"""
    values = np.ascontiguousarray(np.asarray(values, dtype=np.float32).transpose(0, 2, 3, 1))
    return {"shape": list(values.shape), "mean": float(values.astype(np.float64).mean()), "sha256": hashlib.sha256(values.tobytes()).hexdigest()}


def by_transformers(cls, config, arguments, size):
    image = Image.fromarray(pattern(*size))
    arguments = dict(arguments)
    alone = arguments.pop("pictures", 1) == 1
    out = cls(**config)(image if alone else [[image, image]], return_tensors="np", **arguments)
    values = out["pixel_values"]
    row = digest(values[0] if values.ndim == 5 else values)
    if "grids" in out:
        row["grid"] = np.asarray(out["grids"])[0].tolist()
    return row


def square(image, colour):
    side = max(image.size)
    out = Image.new("RGB", (side, side), colour)
    out.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return out


def normalised(tiles, mean, std):
    stacked = np.stack([np.asarray(t) for t in tiles]).transpose(0, 3, 1, 2)
    scaled = (stacked.astype(np.float64) * (1 / 255)).astype(np.float32)
    return (scaled - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]


def highres(size, tile, side, mean, std):
    """LLaVA's 'highres': the picture stretched to one tile, then the tiles of its padded square, from the middle."""
    image = Image.fromarray(pattern(*size))
    big = square(image, tuple(int(255 * m) for m in mean)).resize((side, side))
    n = side // tile
    start = (side - n * tile) // 2
    tiles = [image.resize((tile, tile))]
    tiles += [big.crop((start + c * tile, start + r * tile, start + (c + 1) * tile, start + (r + 1) * tile)) for r in range(n) for c in range(n)]
    return {**digest(normalised(tiles, mean, std)), "grid": [n, n]}


def native_size(height, width, factor, least, most):
    """Ovis2.5: raise a side below the factor, else clamp to 200:1; nearest multiples; then shrink or grow into the allowed pixels."""
    if min(height, width) < factor:
        long = round(factor / min(height, width) * max(height, width))
        height, width = (factor, long) if height < width else (long, factor)
    elif max(height, width) > 200 * min(height, width):
        height, width = min(height, 200 * width), min(width, 200 * height)
    h, w = (round(v / factor) * factor for v in (height, width))
    if h * w > most:
        by = math.sqrt((height * width) / most)
        h, w = (math.floor(v / by / factor) * factor for v in (height, width))
    elif h * w < least:
        by = math.sqrt(least / (height * width))
        h, w = (math.ceil(v * by / factor) * factor for v in (height, width))
    return [h, w]


def main():
    cases = [{"class": cls.__name__[:-3], "config": config, "arguments": arguments, "pattern": size, **by_transformers(cls, config, arguments, size)}
             for cls, config, arguments in CONFIGS for size in SIZES
             if cls is not LlavaImageProcessorPil and cls is not FlavaImageProcessorPil or min(size) > 2]
    clip = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    book = []
    for size in [(61, 47), (33, 340), (20, 20)]:
        out = FlavaImageProcessorPil(codebook_size={"height": 16, "width": 20}, codebook_crop_size={"height": 14, "width": 14})(
            Image.fromarray(pattern(*size)), return_codebook_pixels=True, return_tensors="np")
        book.append({"pattern": size, **digest(np.asarray(out["codebook_pixel_values"]))})
    sizes = [(h, w) for h in (1, 10, 31, 48, 77, 200, 451, 1000, 2400, 5000) for w in (1, 16, 80, 333, 900, 4000)]
    native = [{"limits": limits, "size_hw": [h, w], "resized_hw": native_size(h, w, *limits)}
              for limits in ([32, 448 * 448, 1344 * 1792], [28, 56 * 56, 20000]) for h, w in sizes]
    out = {"transformers": transformers.__version__, "pillow": PIL.__version__, "cases": cases,
           "highres": [{"pattern": size, "tile": 16, "side": side, **highres(size, 16, side, *clip)} for side in (32, 57) for size in SIZES],
           "codebook": book, "native": native}
    lines = ",\n".join(f' "{key}": [\n  ' + ",\n  ".join(map(json.dumps, value)) + "\n ]" if isinstance(value, list) else f" {json.dumps(key)}: {json.dumps(value)}"
                       for key, value in out.items())
    (HERE / "tiles.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
