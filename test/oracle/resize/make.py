"""Pillow's own answers for resize() and readPicture(): run with any Python that has pillow, numpy and safetensors.

    python make.py      # writes cases.json, arrays.safetensors and files/ beside this script
"""
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps
from safetensors.numpy import save_file

HERE = Path(__file__).parent
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def pattern(width, height):
    """A picture that a test can make by itself: no file needed."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * 7 + y * 13 + c * 31 + ((x * y) >> 3)) & 255 for c in range(3)]
    return np.stack(planes, -1).astype(np.uint8)


def resizing(arrays):
    """Small pictures with the answer as bytes, large ones with its SHA-256."""
    rng = np.random.default_rng(7)
    cases = []
    for (width, height), sizes in {(37, 29): [(16, 16), (47, 33), (37, 12), (51, 29), (1, 1)], (5, 7): [(23, 3), (2, 11)],
                                   (1, 1): [(4, 3)], (1, 40): [(3, 7)]}.items():
        source = f"source.{width}x{height}"
        arrays[source] = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for to in sizes:
            for name, code in FILTERS.items():
                result = f"{source}.{to[0]}x{to[1]}.{name}"
                arrays[result] = np.asarray(Image.fromarray(arrays[source]).resize(to, code))
                cases.append({"source": source, "width": to[0], "height": to[1], "filter": name, "result": result})
    for size, to in [((640, 480), (298, 224)), ((333, 251), (448, 448)), ((97, 1031), (224, 2381)), ((1200, 900), (61, 47))]:
        picture = Image.fromarray(pattern(*size))
        for name, code in FILTERS.items():
            digest = hashlib.sha256(picture.resize(to, code).tobytes()).hexdigest()
            cases.append({"pattern": size, "width": to[0], "height": to[1], "filter": name, "sha256": digest})
    return cases


def decoding(arrays):
    """Files of awkward kinds, and what Pillow makes of them (EXIF applied, then convert("RGB"))."""
    folder = HERE / "files"
    folder.mkdir(exist_ok=True)
    base = Image.fromarray(pattern(19, 14)).resize((38, 28), 3)
    grey16 = (np.arange(20 * 12).reshape(12, 20) * 271 + 129).astype(np.uint16)
    rgba = base.copy()
    rgba.putalpha(Image.fromarray(pattern(38, 28)[..., 1]))
    clear = base.quantize(8)
    made = {
        "grey_alpha.png": (rgba.convert("LA"), {}),
        "one_bit.png": (base.convert("1"), {}),
        "palette_transparent.png": (clear, {"transparency": bytes([0, 90, 255])}),
        "rgb_transparent.png": (base, {"transparency": tuple(int(v) for v in np.asarray(base)[3, 5])}),
        "grey16.png": (Image.fromarray(grey16), {}),
        "cmyk.jpg": (base.convert("CMYK"), {"quality": 90}),
        "grey.jpg": (base.convert("L"), {"quality": 88}),
        "progressive.jpg": (base, {"quality": 80, "progressive": True}),
        "lossless.webp": (rgba, {"lossless": True, "exact": True}),
        "lossy.webp": (base, {"quality": 75}),
        "animated.gif": (base.quantize(16), {"save_all": True, "append_images": [base.rotate(90).quantize(16)] * 3}),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        made[f"exif_{orientation}.png"] = (base.crop((0, 0, 9, 6)), {"exif": exif})
    cases = []
    for name, (picture, options) in made.items():
        picture.save(folder / name, **options)
        opened = Image.open(io.BytesIO((folder / name).read_bytes()))
        arrays[f"decoded.{name}"] = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        case = {"file": f"files/{name}", "mode": opened.mode, "decoded": f"decoded.{name}"}
        if "A" in opened.getbands() or opened.info.get("transparency") is not None:  # as transformers composites
            white = Image.new("RGBA", opened.size, (255, 255, 255, 255))
            arrays[f"white.{name}"] = np.asarray(Image.alpha_composite(white, opened.convert("RGBA")).convert("RGB"))
            case["white"] = f"white.{name}"
        cases.append(case)
    return cases


if __name__ == "__main__":
    arrays = {}
    cases = {"pillow": PIL.__version__, "resize": resizing(arrays), "decode": decoding(arrays)}
    (HERE / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    save_file(arrays, HERE / "arrays.safetensors")
