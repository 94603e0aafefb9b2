"""Inputs made up from a model's signature, when the user has none at hand.

Sizes of symbolic axes are chosen per symbol, values per input (`bevel.passes.values`): images have enough pixels for a
network that halves them five times; rows of tokens are lines of text as to their length (what they say is up to
`bevel.passes.own_words`). What to try is a short list of plans; the first that the model runs on is taken.
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice
from math import prod

import numpy as np
import onnx_ir as ir

from bevel.errors import BevelError, CalibrationError
from bevel.ir.signature import Input, signature
from bevel.passes.calibration import Calibration, Feed
from bevel.passes.values import MASK_NAME, MOST_COLOURS, POSITION_NAME, Free, counts, dims, pixel_axes, value_of

# Distinct and mutually prime, so that two axes that are mixed up differ in size.
DISTINCT_SIZES = (2, 3, 5, 7, 11, 13, 17, 19)
# Then every symbolic axis alike, or all but the batch: small ones first, then what convolutional networks need, then 1.
COMMON_SIZES = (4, 8, 16, 32, 64, 128, 224, 256, 512, 1)
# Networks for images halve height and width five times.
HALVED = 32
# Tokens enough for those far apart to have to do with each other, few enough that large models are quick with them.
LINE = 32
# Integers that are used as indices into fewer rows than that are categories, not text.
FEWEST_TOKENS = 32


@dataclass(frozen=True)
class Plan:
    """One way to choose inputs: the `size` of the symbol number k in feed number n, and the `least` free integer.

    `pixels` is the size of the symbol number k where it is the height or width of an image, `tokens` where it is the
    length of a text, None for `size` there too; `batch` is that of first axes, None for `size`. `added` are two symbols
    whose sizes make up the whole that masks are as long as and that numbers of tokens say, as those of a decoder's
    caches and of what is new.
    """

    size: Callable[[int, int], int]
    least: int | None = None
    pixels: Callable[[int, int], int] | None = None
    tokens: Callable[[int, int], int] | None = None
    batch: int | None = None
    added: tuple[str, str] | None = None


def _distinct(k: int, n: int) -> int:
    return DISTINCT_SIZES[k % len(DISTINCT_SIZES)] + n % 2


def _halved(k: int, n: int) -> int:
    return HALVED * (2 + k % 3 + n % 2)


def _line(k: int, n: int) -> int:
    return LINE + 2 * k + n % 2


SMALL = Plan(_distinct)
DISTINCT = (
    Plan(_distinct, pixels=_halved, tokens=_line),
    Plan(_distinct, pixels=_halved),
    SMALL,
    Plan(_distinct, pixels=_halved, tokens=_line, batch=1),
    Plan(_distinct, pixels=_halved, batch=1),
    Plan(_distinct, batch=1),
)
ALIKE = (
    *(Plan(lambda k, n, size=size: size, batch=batch) for size in COMMON_SIZES for batch in (None, 1)),  # type: ignore[misc]
    Plan(lambda k, n: DISTINCT_SIZES[k % len(DISTINCT_SIZES)], least=1),  # some divide by their inputs
)
# Sizes that a model's own shapes name are tried last: an exporter may call an axis free, and fix it inside.
MOST_NAMED = 16
SHAPE_ENTRIES = 8
# Of all inputs of a feed together; a larger one is not tried, but for the first: it may be what the model asks for.
MOST_ENTRIES = 2**24
# More than this many are never made up: a gigabyte of floats.
TOO_MANY_ENTRIES = 2**28


def synthesize(model: ir.Model, seed: int, count: int, runs: Callable[[Feed], object]) -> Calibration:
    """Return `count` made-up feeds that `model` accepts: `runs(feed)` raises a `BevelError` for those it does not.

    The same model, seed and count give the same feeds. Raises `CalibrationError` if no plan works.
    """
    inputs = signature(model)
    if not inputs:
        return Calibration(lambda: [{}], "a model without inputs")
    plans: tuple[Plan, ...] = (SMALL, ALIKE[-1])
    if _has_free_axes(inputs):
        plans = (*DISTINCT, *_added_plans(inputs), *ALIKE, *_named_plans(model))
    _check_possible(inputs)
    failures: list[BevelError] = []
    for plan in _different(plans, inputs):
        if _entries(inputs, plan) > (MOST_ENTRIES if failures else TOO_MANY_ENTRIES):
            continue
        stream = _stream(inputs, plan, seed, count)
        error = _failure(stream, runs)
        if error is None:
            return stream
        failures.append(error)
    raise CalibrationError(
        f"no inputs could be made up that the model runs on: {failures[0].what}",
        remedy="give it real ones: calibration=..., or --calibration inputs.npz",
    )


def _different(plans: Iterable[Plan], inputs: Sequence[Input]) -> Iterator[Plan]:
    """Yield the plans that are not, of these inputs, what one before was."""
    seen: set[object] = set()
    for plan in plans:
        sizes = (plan.least, plan.added, *(tuple(_sizes(inputs, plan, number).values()) for number in range(2)))
        if sizes not in seen:
            seen.add(sizes)
            yield plan


def _added_plans(inputs: Sequence[Input]) -> Iterator[Plan]:
    """Yield plans in which masks, and numbers of tokens, go over two axes together: any two, but batches."""
    batches, masks = _symbols_at(inputs, _batch_axes), _symbols_at(inputs, _mask_axes)
    symbols = [symbol for symbol in _sizes(inputs, SMALL, 0) if symbol not in batches | masks]
    if masks - batches or any(counts(wanted) for wanted in inputs):
        for added in islice(combinations(symbols, 2), MOST_NAMED):
            yield from (
                Plan(_distinct, tokens=tokens, batch=batch, added=added)
                for batch in (None, 1)
                for tokens in (_line, None)
            )


def _named_plans(model: ir.Model) -> Iterator[Plan]:
    """Yield plans with the sizes that are written into short lists of integers, as shapes are."""
    tensors = (value.const_value for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT64)
    shapes = [tensor.numpy() for tensor in tensors if tensor is not None and tensor.size <= SHAPE_ENTRIES]
    for size in sorted({int(entry) for shape in shapes for entry in shape.flat if entry > 1})[:MOST_NAMED]:
        for batch in (1, None):
            yield Plan(lambda k, n, size=size: size, batch=batch)  # type: ignore[misc]


def _check_possible(inputs: Sequence[Input]) -> None:
    """Refuse inputs that no plan makes small enough to be held."""
    if min(_entries(inputs, plan) for plan in (*DISTINCT, *ALIKE)) <= TOO_MANY_ENTRIES:
        return
    largest = max(inputs, key=lambda wanted: _entries([wanted], ALIKE[-1]))
    raise CalibrationError(
        f"input {str(largest)!r} is too large to be made up",
        remedy="give the sizes that vary, a batch say, a name instead of a number in the model's input",
    )


def _stream(inputs: Sequence[Input], plan: Plan, seed: int, count: int) -> Calibration:
    """Return so many feeds, each made when it is first read: who wants so many samples reads fewer feeds than that."""
    held: list[Feed] = []

    def read() -> Iterator[Feed]:
        for number in range(count):
            if number == len(held):
                held.append(_feed(inputs, plan, seed, number))
            yield held[number]

    return Calibration(read, "made-up inputs", partial(_stream, inputs, plan, seed))


def _has_free_axes(inputs: Sequence[Input]) -> bool:
    return any(wanted.shape is None or not all(isinstance(dim, int) for dim in wanted.shape) for wanted in inputs)


def _failure(feeds: Calibration, runs: Callable[[Feed], object]) -> BevelError | None:
    try:
        for feed in feeds:
            runs(feed)
    except BevelError as error:
        return error
    except MemoryError:
        return CalibrationError("there is no memory for inputs of that size")
    return None


def _feed(inputs: Sequence[Input], plan: Plan, seed: int, number: int) -> Feed:
    sizes = _sizes(inputs, plan, number)
    free = Free(plan.least, sum(sizes[symbol] for symbol in plan.added) if plan.added else None)
    return {
        wanted.name: value_of(wanted, _shape(wanted, sizes), free, np.random.default_rng([seed, number, place]))
        for place, wanted in enumerate(inputs)
    }


def _entries(inputs: Sequence[Input], plan: Plan) -> int:
    sizes = _sizes(inputs, plan, 0)
    return sum(prod(_shape(wanted, sizes)) for wanted in inputs)


def _sizes(inputs: Sequence[Input], plan: Plan, number: int) -> dict[str, int]:
    """Choose a size for every symbol, and for every axis without a name (named after its place)."""
    symbols = dict.fromkeys(
        symbol for wanted in inputs for place, dim in enumerate(dims(wanted)) for symbol in _symbols(dim, wanted, place)
    )
    images, lines = _symbols_at(inputs, _image_axes), _symbols_at(inputs, _line_axes)
    batches, masks = _symbols_at(inputs, _batch_axes), _symbols_at(inputs, _mask_axes)

    def size(k: int, symbol: str) -> int:
        if plan.batch is not None and symbol in batches:
            return plan.batch
        if plan.pixels is not None and symbol in images:
            return plan.pixels(k, number)
        return plan.tokens(k, number) if plan.tokens is not None and symbol in lines else plan.size(k, number)

    sizes = {symbol: size(k, symbol) for k, symbol in enumerate(symbols)}
    if plan.added is not None:
        sizes |= dict.fromkeys(masks - batches - {*plan.added}, sum(sizes[symbol] for symbol in plan.added))
    return sizes


def _symbols_at(inputs: Sequence[Input], places: Callable[[Input], Iterable[int]]) -> set[str]:
    return {
        symbol
        for wanted in inputs
        for place in places(wanted)
        for symbol in _symbols(dims(wanted)[place], wanted, place)
    }


def _batch_axes(wanted: Input) -> tuple[int, ...]:
    return (0,) if len(dims(wanted)) > 1 else ()


def _mask_axes(wanted: Input) -> tuple[int, ...]:
    return (len(dims(wanted)) - 1,) if MASK_NAME.search(wanted.name) else ()


def _image_axes(wanted: Input) -> tuple[int, ...]:
    """Return the axes of pixels of an input that is a batch of images, whatever is known of their sizes."""
    if wanted.shape is None or not wanted.dtype.is_floating_point():
        return ()
    return pixel_axes(tuple(dim if isinstance(dim, int) else MOST_COLOURS + 1 for dim in wanted.shape)) or ()


def _line_axes(wanted: Input) -> tuple[int, ...]:
    """Return the axis along which an input is text, rows of tokens."""
    is_text = wanted.below is not None and wanted.below >= FEWEST_TOKENS and not POSITION_NAME.search(wanted.name)
    return (1,) if is_text and len(dims(wanted)) == 2 else ()


def _symbols(dim: int | str | None, wanted: Input, place: int) -> list[str]:
    if isinstance(dim, int):
        return []
    if dim is None:
        return [f"{wanted.name}[{place}]"]
    names = [node.id for node in ast.walk(parsed) if isinstance(node, ast.Name)] if (parsed := _expression(dim)) else []
    return names or [dim]


def _shape(wanted: Input, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(_size(dim, wanted, place, sizes) for place, dim in enumerate(dims(wanted)))


def _size(dim: int | str | None, wanted: Input, place: int, sizes: dict[str, int]) -> int:
    if isinstance(dim, int):
        return max(dim, 0)
    if dim is None:
        return sizes[f"{wanted.name}[{place}]"]
    parsed = _expression(dim)
    return sizes[dim] if parsed is None or dim in sizes else max(_evaluated(parsed.body, sizes), 0)


def _expression(dim: str) -> ast.Expression | None:
    """Read a symbolic size such as `past + 1` as a sum, difference or product of names and integers."""
    try:
        parsed = ast.parse(dim, mode="eval")
    except SyntaxError:
        return None
    return parsed if isinstance(parsed.body, (ast.Name, ast.BinOp)) and _readable(parsed.body) else None


def _readable(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return type(node.op) in ARITHMETIC and _readable(node.left) and _readable(node.right)
    return isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and type(node.value) is int)


ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: int.__add__,
    ast.Sub: int.__sub__,
    ast.Mult: int.__mul__,
    ast.FloorDiv: lambda a, b: a // max(b, 1),
}


def _evaluated(node: ast.AST, sizes: dict[str, int]) -> int:
    if isinstance(node, ast.BinOp):
        return ARITHMETIC[type(node.op)](_evaluated(node.left, sizes), _evaluated(node.right, sizes))
    return sizes[node.id] if isinstance(node, ast.Name) else int(ast.literal_eval(node))
