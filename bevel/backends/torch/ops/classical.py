"""Encoders and linear estimators of ai.onnx.ml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from bevel.backends.torch.table import lower

DOMAIN: Final = "ai.onnx.ml"
TRANSFORMS: Final = ("NONE", "SOFTMAX", "LOGISTIC")
TINY: Final = 1e-30  # what a norm is at least, as the operator says


def unknown_transform(attributes: Mapping[str, Any]) -> str:
    """Say which transform of scores is not supported, if it is not."""
    name = attributes.get("post_transform", "NONE")
    return "" if name in TRANSFORMS else f"it transforms its scores by {name}"


def transformed(scores: Tensor, name: str) -> Tensor:
    """Turn scores into probabilities."""
    if name == "SOFTMAX":
        return scores.softmax(-1)
    return scores.sigmoid() if name == "LOGISTIC" else scores


@lower("ArrayFeatureExtractor", domain=DOMAIN)
def array_feature_extractor(x: Any, indices: Tensor) -> Any:
    """Take entries of the last axis."""
    if not isinstance(x, Tensor):
        return x[..., indices.cpu().numpy().ravel()].reshape(*(x.shape[:-1] or (1,)), -1)
    taken = x.index_select(-1, indices.reshape(-1))
    return taken.unsqueeze(0) if x.dim() == 1 else taken


@lower("Binarizer", domain=DOMAIN)
def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return one where an entry is above a threshold."""
    return (x > threshold).to(x.dtype)


@lower("LabelEncoder", domain=DOMAIN, since=2)
def label_encoder(
    x: Any,
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: Any = None,
    keys_floats: Sequence[float] = (),
    keys_int64s: Sequence[int] = (),
    keys_strings: Sequence[str] = (),
    keys_tensor: Any = None,
    values_floats: Sequence[float] = (),
    values_int64s: Sequence[int] = (),
    values_strings: Sequence[str] = (),
    values_tensor: Any = None,
    device: torch.device,
) -> Any:
    """Map each entry to the value beside its key, and what has no key to the default."""
    keys = keys_tensor if keys_tensor is not None else list(keys_floats or keys_int64s or keys_strings)
    values = values_tensor
    if values is None and values_strings:
        values = np.array(values_strings, dtype=object)
    elif values is None:
        values = torch.tensor(values_floats or values_int64s, device=device)
    places = _places(x, keys)
    if not isinstance(values, Tensor):
        default = default_string if default_tensor is None else default_tensor.item()
        found = places.cpu().numpy()
        return np.where(found < 0, np.asarray(default, object), values[found])
    default = default_float if values.is_floating_point() else default_int64
    fallback = torch.tensor(default, device=values.device) if default_tensor is None else default_tensor.reshape(())
    places = places.to(values.device)
    return torch.where(places < 0, fallback.to(values.dtype), values[places])


def _places(x: Any, keys: Any) -> Tensor:
    """Return the place of each entry among the keys, and -1 for those without; not-a-number is a key like others."""
    if not isinstance(x, Tensor):
        known = {key: place for place, key in enumerate(keys)}
        found = [known.get(entry, -1) for entry in x.ravel()]
        return torch.tensor(found, dtype=torch.int64).reshape(x.shape)
    table = torch.as_tensor(keys, dtype=x.dtype, device=x.device)
    entries = x.unsqueeze(-1)
    same = (entries == table) | ((entries != entries) & (table != table))
    return torch.where(same.any(-1), same.to(torch.uint8).argmax(-1), -1)


@lower("LabelEncoder", domain=DOMAIN, until=1)
def label_encoder_of_classes(
    x: Any,
    *,
    classes_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
    device: torch.device,
) -> Any:
    """Map a string to its place among the classes, or a place to its string."""
    numbers = list(range(len(classes_strings)))
    words, given = list(classes_strings), isinstance(x, Tensor)
    if given:
        return label_encoder(x, keys_int64s=numbers, values_strings=words, default_string=default_string, device=device)
    return label_encoder(x, keys_strings=words, values_int64s=numbers, default_int64=default_int64, device=device)


@lower("LinearRegressor", domain=DOMAIN, refuses=unknown_transform)
def linear_regressor(
    x: Tensor,
    *,
    coefficients: Sequence[float],
    intercepts: Sequence[float] = (),
    targets: int = 1,
    post_transform: str = "NONE",
) -> Tensor:
    """Estimate one number for each target."""
    return transformed(_scores(x, coefficients, intercepts, targets), post_transform)


def _scores(x: Tensor, coefficients: Sequence[float], intercepts: Sequence[float], rows: int) -> Tensor:
    x = x if x.is_floating_point() else x.to(torch.float32)
    weight = torch.tensor(coefficients, dtype=x.dtype, device=x.device).reshape(rows, -1)
    scores = x @ weight.t()
    return scores + torch.tensor(intercepts, dtype=x.dtype, device=x.device) if intercepts else scores


@lower("LinearClassifier", domain=DOMAIN, refuses=unknown_transform)
def linear_classifier(
    x: Tensor,
    *,
    coefficients: Sequence[float],
    classlabels_ints: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    intercepts: Sequence[float] = (),
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[Any, Tensor]:
    """Score each class, and name the best; one score may stand for two classes."""
    labels: list[Any] = list(classlabels_ints or classlabels_strings)
    rows = len(coefficients) // x.shape[1]
    scores = _scores(x, coefficients, intercepts, rows)
    if rows == 1 and len(labels) == 2:
        scores = torch.cat([-scores, scores], 1)
    scores = transformed(scores, post_transform)
    best = scores.argmax(1)
    if classlabels_strings:
        return np.array(labels, dtype=object)[best.cpu().numpy()], scores
    return torch.tensor(labels, device=x.device)[best], scores


@lower("Scaler", domain=DOMAIN)
def scaler(x: Tensor, *, offset: Sequence[float] = (0.0,), scale: Sequence[float] = (1.0,)) -> Tensor:
    """Subtract an offset and multiply with a scale, of all features or of each."""
    x = x if x.is_floating_point() else x.to(torch.float32)
    shift, factor = (torch.tensor(given, dtype=x.dtype, device=x.device) for given in (offset, scale))
    return (x - shift) * factor


@lower("Normalizer", domain=DOMAIN)
def normalizer(x: Tensor, *, norm: str = "MAX") -> Tensor:
    """Divide each sample by its norm."""
    x = x if x.is_floating_point() else x.to(torch.float32)
    order = {"MAX": float("inf"), "L1": 1.0, "L2": 2.0}[norm]
    size: Tensor = torch.linalg.vector_norm(x, order, -1, keepdim=True)
    return x / size.clamp(min=TINY)


@lower("FeatureVectorizer", domain=DOMAIN)
def feature_vectorizer(*tensors: Tensor, inputdimensions: Sequence[int]) -> Tensor:
    """Lay features side by side, each cut or filled up with zeros to its width."""
    parts = []
    for x, width in zip(tensors, inputdimensions, strict=True):
        flat = x.reshape(x.shape[0], -1)
        parts.append(torch.nn.functional.pad(flat[:, :width], (0, max(width - flat.shape[1], 0))))
    return torch.cat(parts, 1).to(torch.float32)


@lower("OneHotEncoder", domain=DOMAIN)
def one_hot_encoder(
    x: Any,
    *,
    cats_int64s: Sequence[int] = (),
    cats_strings: Sequence[str] = (),
    zeros: int = 1,
    device: torch.device,
) -> Tensor:
    """Give each entry an axis of categories."""
    categories: list[Any] = list(cats_int64s or cats_strings)
    places = _places(x, categories).to(device)
    return (places.unsqueeze(-1) == torch.arange(len(categories), device=device)).to(torch.float32)


@lower("Imputer", domain=DOMAIN)
def imputer(
    x: Tensor,
    *,
    imputed_value_floats: Sequence[float] = (),
    imputed_value_int64s: Sequence[int] = (),
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Tensor:
    """Replace a value that stands for a missing one, by one for all features or one for each."""
    replaced = replaced_value_float if x.is_floating_point() else replaced_value_int64
    values = imputed_value_floats if x.is_floating_point() else imputed_value_int64s
    missing = x.isnan() if replaced != replaced else x == replaced
    return torch.where(missing, torch.tensor(list(values), dtype=x.dtype, device=x.device), x)
