"""Operators of ai.onnx.ml: encoders work on each entry, estimators on each sample."""

from __future__ import annotations

from bevel.ir.coupling import Coupling, rule
from bevel.ir.site import Site

CLASSICAL = "ai.onnx.ml"


@rule("Binarizer", "LabelEncoder", domain=CLASSICAL)
def encoder(site: Site) -> Coupling:
    """Map each entry alone."""
    return Coupling("... -> ...")


@rule("ArrayFeatureExtractor", domain=CLASSICAL)
def feature_extractor(site: Site) -> Coupling:
    """Take entries of the last axis by value."""
    return Coupling("... _, ? -> ... _")


@rule("TreeEnsemble", "LinearRegressor", domain=CLASSICAL)
def regressor(site: Site) -> Coupling:
    """Estimate numbers for each sample; features are addressed by attributes."""
    return Coupling("n _ -> n _")


@rule("LinearClassifier", domain=CLASSICAL)
def classifier(site: Site) -> Coupling:
    """Estimate a label and the scores of each class for each sample; features are addressed by attributes."""
    return Coupling("n _ -> n, n _")
