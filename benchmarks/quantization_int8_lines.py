"""Pictures of lines of text, made on the spot: docstrings in 16 fonts, coloured, a little turned, blurred and noisy.

The fonts are those that matplotlib ships; Pillow draws them. Calibration and test have the docstrings of other files.
"""

import textwrap
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.pruning_accuracy_functions import corpus

Array = np.ndarray[Any, Any]

FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*")
WITHOUT_LETTERS = "Display"
SEEDS = {"calibration": 0, "test": 1}
LETTERS = (8, 32)  # in a line
POINTS = (16, 48)
PAPER, INK, LIGHT_ON_DARK = (150, 256), (0, 110), 0.3  # brightness, and how often it is the other way round
TURN, BLUR, NOISE = 1.5, 0.8, 20  # at most: degrees, pixels, standard deviation of 256
MARGIN = (0.1, 0.4)  # of the letters' height


def lines(part: str) -> Iterator[tuple[Image.Image, str]]:
    """Yield a picture of a line of each docstring of a part, with its text."""
    rng = np.random.default_rng(SEEDS[part])
    for function in corpus()[part]:
        text = textwrap.wrap(function.query, int(rng.integers(*LETTERS)))[0]
        yield drawing(text, rng), text


def drawing(text: str, rng: np.random.Generator) -> Image.Image:
    """Return a line as large as a scanner or camera may have it, in colours."""
    files = font_files()
    font = ImageFont.truetype(files[rng.integers(len(files))], int(rng.integers(*POINTS)))
    paper, ink = (tuple(map(int, rng.integers(*ends, 3))) for ends in (PAPER, INK))
    if rng.random() < LIGHT_ON_DARK:
        paper, ink = ink, paper
    left, top, right, bottom = font.getbbox(text)
    across, down = (round(font.size * share) for share in rng.uniform(*MARGIN, 2))
    canvas = Image.new("RGB", (int(right - left) + 2 * across, int(bottom - top) + 2 * down), paper)
    ImageDraw.Draw(canvas).text((across - left, down - top), text, fill=ink, font=font)
    turned = canvas.rotate(rng.uniform(-TURN, TURN), Image.Resampling.BICUBIC, fillcolor=paper)
    pixels = np.asarray(turned.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR))), np.float64)
    noisy = pixels + rng.uniform(0, NOISE) * rng.standard_normal(pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def font_files() -> list[Path]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(file for name in FONTS for file in folder.glob(name) if WITHOUT_LETTERS not in file.name)


def pixels(image: Image.Image, height: int, least: int, most: int | None = None) -> Array:
    """Return an image `[1, 3, height, width]` from -1 to 1, scaled to a height, grey on the right up to `least`."""
    wide = ceil(height * image.width / image.height)
    wide = wide if most is None else min(wide, most)
    scaled = np.asarray(image.resize((wide, height), Image.Resampling.BILINEAR), np.float32)
    found = np.zeros((1, 3, height, max(wide, least)), np.float32)
    found[0, :, :, :wide] = scaled.transpose(2, 0, 1) / 127.5 - 1
    return found
