"""Operators that compute each entry from the entries at the same place of their operands."""

from __future__ import annotations

import onnx_ir as ir

from bevel.ir.action import (
    ADDED,
    CHOSEN,
    DIVIDED,
    HOMOGENEOUS,
    INVERTED,
    LARGEST,
    LINEAR,
    MULTIPLIED,
    NONLINEAR,
    SQUARED,
    Action,
)
from bevel.ir.coupling import Coupling, Freedom, rule
from bevel.ir.site import Opaque, Site

_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


@rule("Cast", "CastLike", "Identity", "Neg", acts=LINEAR)
@rule("Abs", "LeakyRelu", "Relu", acts=HOMOGENEOUS)
@rule("Reciprocal", acts=INVERTED)
@rule(
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitCast", "BitwiseNot", "Ceil", "Celu", "Clip", "Cos"),
    *("Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "Log", "Mish"),
    *("Not", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish"),
    *("Tan", "Tanh", "ThresholdedRelu"),
)
def pointwise(site: Site) -> None:
    """State that the output has the axes of the first operand; others are scalars or give a type only."""
    site.ignore(1)
    site.set(0, site.axes(0))


def power(site: Site) -> Action:
    """A square is a product; other powers are not linear in anything."""
    exponent = site.value(1).const_value
    return SQUARED if exponent is not None and exponent.size == 1 and exponent.numpy().item() == 2 else NONLINEAR


@rule("Add", "Mean", "Sub", "Sum", acts=ADDED)
@rule("Max", "Min", acts=LARGEST)
@rule("Mul", acts=MULTIPLIED)
@rule("Div", acts=DIVIDED)
@rule("PRelu", acts=HOMOGENEOUS)
@rule("Where", acts=CHOSEN)
@rule("Pow", acts=power)
@rule(
    *("And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Greater", "GreaterOrEqual", "Less"),
    *("LessOrEqual", "Mod", "Or", "StringConcat", "Xor"),
)
def broadcasting(site: Site) -> None:
    """State that operands are aligned at the right; axes of size one do not join."""
    if site.version < 7 and site.integer("broadcast"):
        raise Opaque("broadcasting before opset 7 aligns axes by an attribute")
    axes = site.broadcast(*(site.axes(index) for index in range(site.inputs)))
    if site.node.op_type in _COMPARISONS and any(_numbers(site, index) for index in range(site.inputs)):
        site.keep(axes, Freedom.PERMUTE, "integers tell its entries apart, as classes or positions")
    site.set(0, axes)


def _numbers(site: Site, index: int) -> bool:
    """Say whether an input is a list of integers that belongs to the model."""
    value = site.value(index)
    return value.const_value is not None and value.const_value.dtype in (ir.DataType.INT64, ir.DataType.INT32)


def inference(site: Site) -> Action:
    """Dropout passes its input on, unless it is told to train."""
    return LINEAR if site.version >= 7 and not site.has(2) else NONLINEAR


@rule("Dropout", acts=inference)
def dropout(site: Site) -> None:
    """State that outputs and mask have the input's axes."""
    site.set(0, site.axes(0))
    site.set(1, site.axes(0))


@rule("SwiGLU")
def swiglu(site: Site) -> None:
    """State that gate and value have the same axes."""
    site.set(0, site.broadcast(*(site.axes(index) for index in range(site.inputs))))


@rule("RegexFullMatch")
def regex_full_match(site: Site) -> Coupling:
    """State that each string is matched alone."""
    return Coupling("... -> ...")
