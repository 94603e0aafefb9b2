"""Operators that only move entries: reshapes, transpositions, joins and cuts."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from bevel.ir.action import JOINED, MOVED, NONLINEAR, Action
from bevel.ir.axes import ONE, Axis, fresh, product, resolve, total
from bevel.ir.coupling import Coupling, Freedom, rule
from bevel.ir.resize import Resize, Statement, Write, attribute_sizes, drop_attribute, operand_sizes, write_operand
from bevel.ir.site import Axes, Opaque, Site
from bevel.ir.sizes import is_symbolic


@rule("Transpose", acts=MOVED)
def transpose(site: Site) -> None:
    """Reorder whole axes."""
    axes = site.axes(0)
    order = site.integer_list("perm") or list(reversed(range(len(axes))))
    if sorted(order) != list(range(len(axes))):
        raise Opaque(f"its perm {order} does not fit rank {len(axes)}")
    site.set(0, [axes[place] for place in order])


@rule("Reshape", acts=MOVED)
def reshape(site: Site) -> None:
    """Equate the product of the axes before and after; the target follows."""
    source = site.axes(0)
    target = _reshape_sizes(site, source)
    axes = tuple(fresh(size) for size in target)
    site.equate(product(*source), product(*axes))
    site.set(0, axes)
    if site.inputs > 1:
        site.states(_reshape_target(site.node, source, axes))


def _reshape_sizes(site: Site, source: Axes) -> list[int]:
    """Return the output sizes with `0` and `-1` filled in."""
    target = site.integers(1) if site.inputs > 1 else site.integer_list("shape")
    if target is None:
        target = site.output_sizes()
    if target is None:
        raise Opaque("its target shape is not known")
    if not site.integer("allowzero"):
        target = [_copied(source, place) if size == 0 else size for place, size in enumerate(target)]
    whole = product(*source).size
    if whole == 0:
        raise Opaque("it has no entries, so its sizes say nothing about each other")
    if -1 in target:
        known = -product(*(fresh(size) for size in target if size != -1)).size
        rest = whole // -known if known else 0
        target = [rest if size == -1 else size for size in target]
    if product(*(fresh(size) for size in target)).size != whole or any(size < 0 for size in target):
        shown = ", ".join("?" if is_symbolic(size) else str(size) for size in target)
        raise Opaque(f"its target [{shown}] does not hold as many entries as its input, whatever is free there")
    return target


def _copied(source: Axes, place: int) -> int:
    return source[place].size if place < len(source) else 0


def _reshape_target(node: ir.Node, source: Axes, axes: Axes) -> Statement:
    def follow(resize: Resize) -> Sequence[Write]:
        if not resize.touches(*axes):
            return ()
        elements: list[Axis | int] = []
        for place, axis in enumerate(axes):
            same = place < len(source) and resolve(source[place]) is resolve(axis)
            elements.append(0 if same and is_symbolic(axis.size) else axis)
        open_places = [place for place, element in enumerate(elements) if _is_open(element)]
        if open_places:
            changing = [place for place in open_places if resize.touches(axes[place])]
            elements[(changing or open_places)[0]] = -1
        write = write_operand(node, 1, elements, resize)
        return [write, drop_attribute(node, "allowzero")]

    return follow


def _is_open(element: Axis | int) -> bool:
    return not isinstance(element, int) and is_symbolic(element.size)


@rule("Flatten", acts=MOVED)
def flatten(site: Site) -> None:
    """Merge the axes before and from a place on."""
    axes = site.axes(0)
    place = site.integer("axis", 1)
    place = place + len(axes) if place < 0 else place
    site.set(0, (product(*axes[:place]), product(*axes[place:])))


@rule("Squeeze", acts=MOVED)
def squeeze(site: Site) -> None:
    """Leave out axes of size one."""
    axes = site.axes(0)
    places = _places(site, len(axes))
    if places is None:
        if any(is_symbolic(axis.size) for axis in axes):
            raise Opaque("it leaves out every axis of size one, and some sizes are symbolic")
        places = {place for place, axis in enumerate(axes) if axis.size == 1}
    site.fix([axes[place] for place in places], "it must have size one")
    site.set(0, [axis for place, axis in enumerate(axes) if place not in places])


@rule("Unsqueeze", acts=MOVED)
def unsqueeze(site: Site) -> None:
    """Insert axes of size one."""
    axes = list(site.axes(0))
    listed = site.required_integers(1) if site.has(1) else site.integer_list("axes") or []
    rank = len(axes) + len(listed)
    for place in sorted(site.position(place, rank) for place in listed):
        axes.insert(place, ONE)
    site.set(0, axes)


def _places(site: Site, rank: int) -> set[int] | None:
    """Return the axes that an operand or attribute `axes` lists, counted from the left; None where it is left away."""
    listed = site.required_integers(1) if site.has(1) else site.integer_list("axes")
    return None if listed is None else {site.position(place, rank) for place in listed}


@rule("Concat", acts=JOINED)
def concat(site: Site) -> None:
    """Lay operands end to end along one axis; the others are the same."""
    operands = [site.axes(index) for index in range(site.inputs)]
    rank = len(operands[0])
    place = site.position(site.integer("axis", 1), rank)
    for axes in operands[1:]:
        site.equate_all([*operands[0][:place], *operands[0][place + 1 :]], [*axes[:place], *axes[place + 1 :]])
    joined = total(*(axes[place] for axes in operands))
    site.set(0, (*operands[0][:place], joined, *operands[0][place + 1 :]))


@rule("Split", acts=MOVED)
def split(site: Site) -> None:
    """Cut one axis into parts; the sizes of the parts follow."""
    axes = site.axes(0)
    place = site.position(site.integer("axis"), len(axes))
    sizes = _split_sizes(site, axes[place].size)
    parts = cut_apart(site, axes[place], sizes)
    for index, part in enumerate(parts):
        site.set(index, (*axes[:place], part, *axes[place + 1 :]))
    site.states(_split_statement(site, parts))


def _split_sizes(site: Site, size: int) -> list[int]:
    given = site.required_integers(1) if site.has(1) else site.integer_list("split")
    if given is None:
        chunk = -(-size // site.outputs)
        given = [chunk] * (site.outputs - 1) + [size - chunk * (site.outputs - 1)]
    if is_symbolic(size) or len(given) != site.outputs or sum(given) != size or min(given) < 0:
        raise Opaque(f"its parts {given} do not fit an axis of size {size}")
    return given


def _split_statement(site: Site, parts: Sequence[Axis]) -> Statement:
    node = site.node
    if site.version < 13:
        return attribute_sizes(node, "split", parts)
    follow_operand = operand_sizes(node, 1, parts)

    def follow(resize: Resize) -> Sequence[Write]:
        writes = follow_operand(resize)
        if not writes:
            return ()
        if len(node.inputs) < 2:
            return [lambda: node.resize_inputs(2), drop_attribute(node, "num_outputs"), *writes]
        return writes

    return follow


def cut_apart(site: Site, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Take an axis apart into parts of the given sizes, which fill it."""
    parts = []
    for size in sizes[:-1]:
        part, axis = cut(site, axis, size)
        parts.append(part)
    return [*parts, axis]


def cut(site: Site, axis: Axis, place: int) -> tuple[Axis, Axis]:
    """Take an axis apart at a place, which may be one of its ends."""
    if place == 0:
        return fresh(0), axis
    if place == axis.size:
        return axis, fresh(0)
    return site.facts.solver.cut(axis, place)


@rule("Expand", acts=MOVED)
def expand(site: Site) -> None:
    """Repeat along axes of size one; any order of the copies is the same."""
    source, target = site.axes(0), site.integers(1)
    if target is None:
        _expand_to_unknown(site, source)
        return
    rank = max(len(source), len(target))
    source = (ONE,) * (rank - len(source)) + source
    target = [1] * (rank - len(target)) + target
    axes = [fresh(size) if axis.size == 1 and size != 1 else axis for axis, size in zip(source, target, strict=True)]
    site.set(0, axes)
    # A 1 in the target keeps whatever the input has.
    elements = [axis if old.size == 1 else 1 for axis, old in zip(axes, source, strict=True)]

    def follow(resize: Resize) -> Sequence[Write]:
        return [write_operand(site.node, 1, elements, resize)] if resize.touches(*axes) else ()

    site.states(follow)


def _expand_to_unknown(site: Site, source: Axes) -> None:
    """Keep the sizes where only the run tells the target; any order is still the same."""
    axes = list(site.fresh_output())
    offset = len(axes) - len(source)
    for place, axis in enumerate(source, start=offset):
        if axis.size != 1:
            site.equate(axes[place], axis)
    site.keep(axes, Freedom.PERMUTE, "its target shape is not known before it runs")
    site.set(0, axes)


@rule("Tile", acts=MOVED)
def tile(site: Site) -> None:
    """Repeat whole axes; any order of the copies is the same."""
    if site.version < 6:
        raise Opaque("Tile before opset 6 has other operands")
    axes, counts = site.axes(0), site.required_integers(1)
    repeats = [fresh(count) for count in counts]
    site.set(0, [product(count, axis) for count, axis in zip(repeats, axes, strict=True)])
    site.states(operand_sizes(site.node, 1, repeats))


def zero_padding(site: Site) -> Action:
    """Padding passes scales where it adds zeros, or entries of its input."""
    return MOVED if site.text("mode", "constant") != "constant" or _pads_zeros(site) else NONLINEAR


def _pads_zeros(site: Site) -> bool:
    if not site.has(2):
        return site.node.attributes.get_float("value", 0.0) == 0
    tensor = site.value(2).const_value
    return tensor is not None and tensor.size == 1 and not tensor.numpy().any()


@rule("Pad", acts=zero_padding)
def pad(site: Site) -> None:
    """Put constants around an axis: the padding is a part of it like any other."""
    axes = site.axes(0)
    pads = _pads(site, len(axes))
    if pads is None:
        raise Opaque("its pads are not known before it runs")
    constant = site.text("mode", "constant") == "constant"
    result: list[Axis] = []
    before: list[Axis | int] = []
    after: list[Axis | int] = []
    for place, axis in enumerate(axes):
        left, right = pads[place], pads[place + len(axes)]
        if left <= 0 and right <= 0 and (left or right):
            site.fix(axis, "it is cropped")
        elif (left or right) and not constant:
            site.fix(axis, "it is padded with its own entries")
        head, tail = fresh(max(left, 0)), fresh(max(right, 0))
        inner = _cropped(site, axis, -min(left, 0), -min(right, 0))
        padded = total(head, inner, tail)
        if not constant:
            site.fix(padded, "it is padded with its own entries")
        result.append(padded)
        before.append(head if left > 0 else left)
        after.append(tail if right > 0 else right)
    site.set(0, result)
    listed = _padded_axes(site, len(axes))
    site.states(_pads_statement(site, [side[place] for side in (before, after) for place in listed]))


def _pads(site: Site, rank: int) -> list[int] | None:
    """Return how much is put before each axis, then after each."""
    given = site.integers(1) if site.inputs > 1 else site.integer_list("pads")
    if given is None:
        return None
    listed, pads = _padded_axes(site, rank), [0] * (2 * rank)
    for place, axis in enumerate(listed):
        pads[axis], pads[axis + rank] = given[place], given[place + len(listed)]
    return pads


def _pads_statement(site: Site, pads: Sequence[Axis | int]) -> Statement:
    if site.inputs > 1:
        return operand_sizes(site.node, 1, pads)
    return attribute_sizes(site.node, "pads", [fresh(size) if isinstance(size, int) else size for size in pads])


def _padded_axes(site: Site, rank: int) -> list[int]:
    """Return the axes that the pads are listed for."""
    return [site.position(axis, rank) for axis in site.required_integers(3)] if site.has(3) else list(range(rank))


def _cropped(site: Site, axis: Axis, left: int, right: int) -> Axis:
    if is_symbolic(axis.size) and (left or right):
        raise Opaque("it crops an axis of symbolic size")
    rest = cut(site, axis, left)[1]
    return cut(site, rest, rest.size - right)[0]


@rule("DepthToSpace", acts=MOVED)
def depth_to_space(site: Site) -> Coupling:
    """Spread channels over blocks of positions; channels stay free."""
    block = site.integer("blocksize")
    depth = "(c p q)" if site.text("mode", "DCR") == "CRD" else "(p q c)"
    return Coupling(f"n {depth} h w -> n c (h p) (w q)", sizes={"p": block, "q": block}, fixed="pqhw")


@rule("SpaceToDepth", acts=MOVED)
def space_to_depth(site: Site) -> Coupling:
    """Gather blocks of positions into channels; channels stay free."""
    block = site.integer("blocksize")
    depth = "(c p q)" if site.text("mode", "DCR") == "CRD" else "(p q c)"
    return Coupling(f"n c (h p) (w q) -> n {depth} h w", sizes={"p": block, "q": block}, fixed="pqhw")
