"""ResNet-50 and ShuffleNet of the onnx package as classifiers that know something: a head fitted to ten textures.

ShuffleNet has what MobileNets have: depthwise convolutions. The weights of the files are constants. Here convolutions
are drawn at random, normalizations have the statistics of the images, and the last layer is a linear discriminant of
the pooled features, so that answers differ and have margins.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import bevel
from bevel.backends.onnxruntime import Session
from bevel.ir.opset import raise_opset
from bevel.passes.execution import Execution
from bevel.passes.fitting.normalization import MEAN, SCALE, SHIFT, VARIANCE, align, is_normalization, parameter
from bevel.passes.fitting.walk import Walk

Array = np.ndarray[Any, Any]

LIGHT = ("resnet50", "shufflenet")
CLASSES, SIZE, SEED = 10, 224, 0
ALIGNED, FITTED = 8, 60  # images that normalizations and the head are fitted to
NOISE, RIDGE, HIGHEST = 0.5, 0.1, 5.0  # of an image; of the covariance; the highest of all scores


def textures(count: int, seed: int, noise: float = NOISE) -> tuple[Array, Array]:
    """Return images `[n, 3, 224, 224]` and their classes: coloured patterns, each shifted, faded and noisy."""
    drawn = np.random.default_rng(SEED)
    patterns = drawn.standard_normal((CLASSES, 3, 14, 14)) + 2 * drawn.standard_normal((CLASSES, 3, 1, 1))
    smooth = np.kron(patterns, np.ones((SIZE // 14, SIZE // 14)))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    shifts = rng.integers(0, SIZE, (count, 2))
    images = np.stack(
        [np.roll(smooth[label], tuple(shift), (1, 2)) for label, shift in zip(labels, shifts, strict=True)]
    )
    images *= rng.uniform(0.8, 1.2, (count, 1, 1, 1))
    images += noise * rng.standard_normal(images.shape)
    return images.astype(np.float32), labels


def classifier(name: str, path: Path) -> None:
    """Write the network of that name to a file."""
    from tests import zoo

    model = bevel.load(zoo.light(name))
    raise_opset(model)
    rng = np.random.default_rng(SEED)
    for node in model.graph:
        if node.op_type == "Conv":
            weight = parameter(node, 1)
            shape = tuple(weight.shape.numpy())  # type: ignore[union-attr]
            put(weight, rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])))
        elif is_normalization(node):
            size = parameter(node, SCALE).shape.numpy()  # type: ignore[union-attr]
            # Branches end in a normalization; small ones keep what distinguishes images, as trained ones do.
            ends = any(use.node.op_type == "Sum" for use in node.outputs[0].uses())
            put(parameter(node, SCALE), rng.uniform(0.5, 1.0, size) * (0.1 if ends else 1.0))
            put(parameter(node, SHIFT), rng.standard_normal(size) * 0.1)
    read = model.graph.inputs[0].name or ""
    images, _ = textures(ALIGNED, SEED + 1)
    walk = Walk(model, [{read: image[None]} for image in images], Execution())
    for node in model.graph:
        if is_normalization(node):
            mean, variance = align(walk, node)
            put(parameter(node, MEAN), mean)
            put(parameter(node, VARIANCE), variance)
    _fit_head(model, read)
    bevel.optimize(model, "fold", verify=False)
    bevel.save(model, path)


def _fit_head(model: ir.Model, name: str) -> None:
    """Let the last layer give the discriminants of the classes, and very low scores to all others it has."""
    images, labels = textures(FITTED, SEED + 2)
    head = next(node for node in model.graph if node.op_type == "Gemm")
    probe = model.clone()
    features = next(node for node in probe.graph if node.op_type == "Gemm").inputs[0]
    assert features is not None
    probe.graph.outputs[:] = [features]
    with Session(probe, threads=1) as session:
        rows = np.concatenate([session.run({name: image[None]})[features.name or ""] for image in images])
    weights, bias = discriminants(rows.reshape(len(images), -1), labels)
    matrix, vector = (parameter(head, place) for place in (1, 2))
    shape = tuple(matrix.shape.numpy())  # type: ignore[union-attr]
    full = np.zeros(shape)
    full[:CLASSES] = weights.T
    put(matrix, full)
    put(vector, np.concatenate([bias, np.full(shape[0] - CLASSES, -10.0)]))


def discriminants(features: Array, labels: Array) -> tuple[Array, Array]:
    """Return weights `[features, classes]` and bias of the linear discriminants of rows `[n, features]`."""
    rows = features.astype(np.float64)
    centre = rows.mean(0)
    means = np.stack([rows[labels == label].mean(0) for label in range(CLASSES)]) - centre
    spread = rows - centre - means[labels]
    covariance = spread.T @ spread / len(rows)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weights = np.linalg.solve(covariance, means.T)
    bias = -0.5 * np.sum(weights * means.T, 0) - centre @ weights
    scale = HIGHEST / np.abs(rows @ weights + bias).max()
    return weights * scale, bias * scale


def put(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
