"""Models built from PyTorch modules and exported, each once. Torch is imported only when something must be made."""

import io
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.zoo.store import kept

STYLES = ("dynamo", "dynamo-optimized", "torchscript")
NAMES = (
    "gpt",
    "gpt-fresh",
    "bert",
    "llama",
    "llama-tied",
    "llama-fused",
    "encoder",
    "mamba",
    "lstm",
    "gru",
    "vit",
    "swin",
    "resnet",
    "resnext",
    "mobilenet",
    "densenet",
    "shufflenet",
    "unet",
    "convnext",
    "gated",
    "vgg",
    "superresolution",
    "focus",
)
SIZES = ((2, 12), (3, 9))  # batch and sequence length of the two trials

Trial = tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def model(name: str, style: str = "dynamo") -> onnx.ModelProto:
    return onnx.load(path(name, style))


def path(name: str, style: str = "dynamo") -> Path:
    """A file in one of three styles: "dynamo" (as captured), "dynamo-optimized" (the default) or "torchscript"."""
    return kept(f"{name}-{style}.onnx", partial(exported, name, style))


@cache
def trials(name: str) -> tuple[Trial, ...]:
    """Inputs by name, and the output PyTorch computes for them."""
    with np.load(kept(f"{name}.npz", partial(computed, name))) as saved:
        return tuple(
            ({key[2:]: saved[key] for key in saved.files if key.startswith(f"{index}/")}, saved[f"output/{index}"])
            for index in range(len(SIZES))
        )


def exported(name: str, style: str) -> bytes:
    from tests.zoo.export import dynamo, torchscript
    from tests.zoo.recipes import RECIPES

    recipe = RECIPES[name]
    arguments = (recipe.module(), recipe.example(), recipe.axes)
    if style == "torchscript":
        return torchscript(*arguments).SerializeToString()
    captured, optimized = (graph.SerializeToString() for graph in dynamo(*arguments))
    if style == "dynamo":
        kept(f"{name}-dynamo-optimized.onnx", lambda: optimized)
        return captured
    kept(f"{name}-dynamo.onnx", lambda: captured)
    return optimized


def computed(name: str) -> bytes:
    import torch

    from tests.zoo.recipes import RECIPES

    module = RECIPES[name].module()
    arrays = {}
    for index, size in enumerate(SIZES):
        inputs = RECIPES[name].feed(*size)
        with torch.no_grad():
            arrays[f"output/{index}"] = module(**inputs).numpy()
        arrays |= {f"{index}/{key}": value.numpy() for key, value in inputs.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
