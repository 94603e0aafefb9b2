"""Apply an equation between axes to a node: words become axes, and the same word the same axis."""

from __future__ import annotations

from collections.abc import Sequence

from bevel.errors import RuleError
from bevel.ir.axes import ONE, Axis, fresh, product, total
from bevel.ir.coupling import (
    ELLIPSIS,
    FIXED,
    FREE,
    OWN,
    STAR,
    UNIT,
    Compound,
    Coupling,
    Freedom,
    TensorPattern,
    Term,
    Word,
    parse_axis,
    parse_equation,
)
from bevel.ir.resize import attribute_size
from bevel.ir.site import POSITIONS, Axes, Opaque, Site


def couple(site: Site, coupling: Coupling) -> None:
    """State an equation between the axes of a node's inputs and outputs."""
    _Application(site, coupling).run()


class _Application:
    """Applies one coupling to one node."""

    def __init__(self, site: Site, coupling: Coupling) -> None:
        self.site = site
        self.coupling = coupling
        self.words: dict[str, Axis] = {name: fresh(size) for name, size in coupling.sizes.items()}
        self.leading: list[Sequence[Axis]] = []
        self.compounds: list[tuple[Compound, Axis]] = []
        self.seen: dict[str, list[tuple[int, int, Axis]]] = {}
        self.stars = 0

    def run(self) -> None:
        inputs, outputs = parse_equation(self.coupling.equation)
        if self.site.inputs > len(inputs) or self.site.outputs > len(outputs):
            raise Opaque(f"its rule {self.coupling.equation!r} has too few tensors")
        for index, pattern in enumerate(inputs):
            if self.site.has(index):
                self._read(index, pattern)
        self._solve_compounds()
        leading = self.site.broadcast(*self.leading)
        written: set[str] = set()
        for index, pattern in enumerate(outputs[: self.site.outputs]):
            self._write(index, pattern, leading, written)
        self._mark(written)

    def _read(self, index: int, pattern: TensorPattern) -> None:
        if pattern == ".":
            self.site.ignore(index)
            return
        axes = self.site.axes(index)
        if pattern == "?":
            self.site.fix(axes, "the order of its entries matters")
            return
        assert not isinstance(pattern, str)
        for position, term, axis in self._match(pattern, axes, index):
            if term is STAR or term is OWN:
                self.site.fix(axis, POSITIONS)
            elif term is UNIT:
                self._expect_unit(axis, index)
            elif isinstance(term, Word):
                self._bind(term.name, axis)
                self.seen.setdefault(term.name, []).append((index, position, axis))
            else:
                self.compounds.append((term, axis))
                for name in _words(term):
                    self.seen.setdefault(name, []).append((index, position, axis))

    def _match(self, pattern: tuple[Term, ...], axes: Axes, index: int) -> list[tuple[int, Term, Axis]]:
        """Pair terms with axes, spreading `...` and `*`."""
        spread = len(axes) - len(pattern) + 1
        many = next((place for place, term in enumerate(pattern) if term is ELLIPSIS or term is STAR), None)
        if (many is None and spread != 1) or spread < 0:
            raise Opaque(f"its input {index} has rank {len(axes)}, which does not fit {self.coupling.equation!r}")
        terms = list(pattern)
        if many is not None:
            if pattern[many] is ELLIPSIS:
                self.leading.append(axes[many : many + spread])
                terms[many : many + 1] = [ELLIPSIS] * spread
            else:
                self.stars = max(self.stars, spread)
                terms[many : many + 1] = [STAR] * spread
        pairs = zip(range(len(axes)), terms, axes, strict=True)
        return [(place, term, axis) for place, term, axis in pairs if term is not ELLIPSIS]

    def _expect_unit(self, axis: Axis, index: int) -> None:
        if axis.size != 1:
            raise Opaque(f"its input {index} has an axis of size {axis.size} where 1 was expected")

    def _bind(self, name: str, axis: Axis) -> None:
        if name in self.words:
            self.site.equate(self.words[name], axis)
        else:
            self.words[name] = axis

    def _solve_compounds(self) -> None:
        """Equate compound axes, taking first those of which at most one word is still unknown."""
        waiting = self.compounds
        while waiting:
            later = []
            for term, axis in waiting:
                unknown = [name for name in dict.fromkeys(_words(term)) if name not in self.words]
                if len(unknown) > 1:
                    later.append((term, axis))
                    continue
                if unknown:
                    self.words[unknown[0]] = fresh(self._missing_size(term, axis.size, unknown[0]))
                self.site.equate(self._build(term), axis)
            if len(later) == len(waiting):
                raise RuleError(f"the sizes in {self.coupling.equation!r} are not determined; give them in `sizes`")
            waiting = later

    def _missing_size(self, term: Term, size: int, name: str) -> int:
        if isinstance(term, Word):
            return size
        for part in term.parts:
            if name not in _words(part):
                known = self._build(part).size
                size, rest = divmod(size, max(known, 1)) if term.kind == "product" else (size - known, 0)
                if rest or size < 0:
                    raise Opaque(f"its sizes do not fit {self.coupling.equation!r}")
        inner = next(part for part in term.parts if name in _words(part))
        return self._missing_size(inner, size, name)

    def _build(self, term: Term) -> Axis:
        if isinstance(term, Word):
            return self.words[term.name]
        parts = [self._build(part) for part in term.parts]
        return product(*parts) if term.kind == "product" else total(*parts)

    def _write(self, index: int, pattern: TensorPattern, leading: Axes, written: set[str]) -> None:
        site = self.site
        if isinstance(pattern, str):
            axes = site.fresh_output(index)
            if pattern == "?":
                site.fix(axes, "the order of its entries matters")
            site.set(index, axes)
            return
        sizes = site.output_sizes(index)
        result: list[Axis] = []
        for term in pattern:
            if term is ELLIPSIS:
                result.extend(leading)
            elif term is STAR:
                count = self.stars if sizes is None else len(sizes) - len(pattern) + 1
                result.extend(self._positions(index, sizes, len(result), count))
            elif term is OWN:
                result.extend(self._positions(index, sizes, len(result), 1))
            elif term is UNIT:
                result.append(ONE)
            else:
                written.update(_words(term))
                result.append(self._output_axis(term, sizes, len(result)))
        site.set(index, result)

    def _positions(self, index: int, sizes: list[int] | None, start: int, count: int) -> list[Axis]:
        """Make axes of an output whose order carries meaning."""
        symbols, name = self.site.facts.symbols, self.site.node.outputs[index].name
        made = [
            fresh(sizes[place] if sizes is not None and place < len(sizes) else symbols.unknown(f"{name}[{place}]"))
            for place in range(start, start + count)
        ]
        self.site.fix(made, POSITIONS)
        return made

    def _output_axis(self, term: Term, sizes: list[int] | None, place: int) -> Axis:
        unknown = [name for name in dict.fromkeys(_words(term)) if name not in self.words]
        if unknown:
            if len(unknown) > 1 or sizes is None or place >= len(sizes):
                raise Opaque(f"the size of its output axis {place} is not known")
            self.words[unknown[0]] = fresh(self._missing_size(term, sizes[place], unknown[0]))
        return self._build(term)

    def _mark(self, written: set[str]) -> None:
        coupling, site = self.coupling, self.site
        for name in coupling.fixed:
            self._lose(name, FIXED, POSITIONS)
        for name in coupling.statistics:
            self._lose(name, Freedom.PERMUTE, "its statistics run over it")
        for name in coupling.sums:
            for index, position, _ in self.seen.get(name, ()):
                site.sums_over(self.words[name], index, position)
        for name in self.seen.keys() - written - set(coupling.sums) - set(coupling.fixed) - set(coupling.statistics):
            self._lose(name, FREE ^ Freedom.SELECT, "it is reduced away by other means than a sum")
        for attribute, text in coupling.states.items():
            site.states(attribute_size(site.node, attribute, self._build(parse_axis(text))))

    def _lose(self, name: str, keeps: Freedom, why: str) -> None:
        if name in self.words:
            self.site.keep(self.words[name], keeps, why)


def _words(term: Term) -> list[str]:
    if isinstance(term, Word):
        return [term.name]
    return [name for part in term.parts for name in _words(part)]
