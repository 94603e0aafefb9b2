"""What networks are trained and tested on: scikit-learn's digits, and the source of Python's standard library."""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

SPLIT_SEED = 0
HELD_OUT_IMAGES = 500
HELD_OUT_FILES = 0.1  # every tenth file
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = len(CHARACTERS) + 1  # the last stands for every other character
LENGTH = 128

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Images:
    """Batches of images in random order, each batch moved by at most one pixel either way, with labels."""

    images: Tensor
    labels: Tensor
    batch: int = 64

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(len(self.images)).split(self.batch):
            yield shifted(self.images[index]), self.labels[index]


@dataclass(frozen=True)
class Windows:
    """Batches of windows at random places of a text: characters, and the characters that follow them."""

    text: Tensor
    batches: int
    batch: int = 8

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.batches):
            starts = torch.randint(len(self.text) - LENGTH, (self.batch, 1))
            window = self.text[starts + torch.arange(LENGTH + 1)]
            yield window[:, :-1], window[:, 1:]


def shifted(images: Tensor) -> Tensor:
    down, right = torch.randint(-1, 2, (2,)).tolist()
    padded = functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


@cache
def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return training and held-out images `[n, 1, 8, 8]` with labels `[n]`, stratified by class."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    train, test, train_labels, test_labels = train_test_split(
        images, torch.tensor(labels), test_size=HELD_OUT_IMAGES, stratify=labels, random_state=SPLIT_SEED
    )
    return (train, train_labels), (test, test_labels)


@cache
def source_code() -> tuple[Tensor, Tensor]:
    """Return training and held-out text as character numbers, split by files."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path for path in library.rglob("*.py") if "site-packages" not in path.parts and "test" not in path.parts
    )
    every = round(1 / HELD_OUT_FILES)
    train = [path for place, path in enumerate(files) if place % every]
    return encoded(train), encoded(files[::every])


def encoded(files: list[Path]) -> Tensor:
    """Read files as one text of character numbers."""
    numbers = bytearray([VOCABULARY - 1] * 256)
    for number, character in enumerate(CHARACTERS):
        numbers[ord(character)] = number
    text = "\n".join(path.read_text("utf-8", errors="replace") for path in files)
    return torch.frombuffer(
        bytearray(text.encode("latin-1", errors="replace").translate(numbers)), dtype=torch.uint8
    ).long()


def accuracy(logits: Array, labels: Array) -> float:
    return float((logits.argmax(-1) == labels).mean())


def perplexity(logits: Array, labels: Array) -> float:
    top = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    chosen = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return float(np.exp((log_sum - chosen).mean()))
