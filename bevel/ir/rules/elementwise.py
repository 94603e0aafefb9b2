"""Operators that compute each entry from the entries at the same place of their operands."""

from __future__ import annotations

from bevel.ir.coupling import Coupling, rule
from bevel.ir.site import Opaque, Site


@rule(
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitCast", "BitwiseNot", "Cast", "Ceil", "Celu", "Cos"),
    *("Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN"),
    *("LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign"),
    *("Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Clip", "CastLike"),
)
def pointwise(site: Site) -> None:
    """State that the output has the axes of the first operand; others are scalars or give a type only."""
    site.ignore(1)
    site.set(0, site.axes(0))


@rule(
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
    "StringConcat",
)
def broadcasting(site: Site) -> None:
    """State that operands are aligned at the right; axes of size one do not join."""
    if site.version < 7 and site.integer("broadcast"):
        raise Opaque("broadcasting before opset 7 aligns axes by an attribute")
    site.set(0, site.broadcast(*(site.axes(index) for index in range(site.inputs))))


@rule("Dropout")
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
