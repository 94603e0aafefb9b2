"""Images of letters, made on the spot: 26 classes, each in both cases and 21 fonts, turned, sheared, faint, noisy.

The fonts are those that matplotlib ships; Pillow draws them. Nothing is downloaded, and no image is drawn twice.
"""

import math
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmr10*", "cmss10*", "cmtt10*", "cmb10*", "cmti10*")
WITHOUT_LETTERS = "Display"
CLASSES = len(string.ascii_lowercase)
SIZE = 20
DRAWN, HEIGHT = 64, 40  # pixels of the drawing that is turned and scaled down, and of the letter in it
TURN, SHEAR, SHIFT = 0.25, 0.2, 0.1  # at most: radians, and parts of the image
SCALE = (1.2, 1.9)
CONTRAST, NOISE = 0.5, 0.1  # of the faintest; standard deviation


@dataclass(frozen=True)
class Glyphs:
    """Batches of new images `[n, 1, 20, 20]` with labels, for as long as one asks."""

    batches: int
    batch: int = 64

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.batches):
            yield glyphs(self.batch)


def glyphs(count: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Draw images with labels: the same for the same seed, else as torch's own generator has it."""
    drawn = letters()
    generator = torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
    which = torch.randint(len(drawn), (count,), generator=generator)
    places = functional.affine_grid(distortions(count, generator), [count, 1, SIZE, SIZE], align_corners=False)
    images = functional.grid_sample(drawn[which], places, align_corners=False)
    contrast = 1 - (1 - CONTRAST) * torch.rand(count, 1, 1, 1, generator=generator)
    noise = NOISE * torch.randn(images.shape, generator=generator)
    return (images * contrast + noise).clamp(0, 1), which % CLASSES


def distortions(count: int, generator: torch.Generator) -> Tensor:
    """Random affine maps `[n, 2, 3]`: turned, scaled, sheared, shifted."""
    turn, shear, right, down = (torch.rand(4, count, generator=generator) * 2 - 1).unbind(0)
    turn, shear = turn * TURN, shear * SHEAR
    least, most = map(math.log, SCALE)
    scale = torch.exp(least + (most - least) * torch.rand(count, generator=generator))
    cosine, sine = turn.cos() / scale, turn.sin() / scale
    rows = torch.stack((cosine, shear * cosine - sine, right * SHIFT, sine, shear * sine + cosine, down * SHIFT), 1)
    return rows.view(count, 2, 3)


@cache
def letters() -> Tensor:
    """Every letter of every font, large and centred; entry k is of class k mod 26."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(file for pattern in FONTS for file in folder.glob(pattern) if WITHOUT_LETTERS not in file.name)
    fonts = [ImageFont.truetype(file, HEIGHT) for file in files]
    drawings = [drawing(letter, font) for font in fonts for letter in string.ascii_lowercase + string.ascii_uppercase]
    return torch.stack(drawings)


def drawing(letter: str, font: ImageFont.FreeTypeFont) -> Tensor:
    canvas = Image.new("L", (DRAWN, DRAWN))
    ImageDraw.Draw(canvas).text((DRAWN / 2, DRAWN / 2), letter, fill=255, font=font, anchor="mm")
    return torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(1, DRAWN, DRAWN) / 255
