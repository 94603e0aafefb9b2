"""The algebra: what two axes have in common after unification is the same index operation on both."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.ir.axes import ONE, Axis, Dim, Sum, _settled, atoms, fresh, product, resolve, total
from bevel.ir.edit import entries, indicator
from bevel.ir.sizes import FIRST_SYMBOL, Symbols, is_symbolic
from bevel.ir.unification import Solver

SIZES = st.sampled_from([1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 18, 24, 30, 36])


def divisors(size: int) -> list[int]:
    return [divisor for divisor in range(2, size) if size % divisor == 0]


@st.composite
def axes(draw, size: int, pool: list[Dim], depth: int = 3) -> Axis:
    """Draw an expression of a size; dimensions come from the pool, or are new and join it."""
    kinds = ["dim"] + ["product"] * bool(divisors(size)) + ["sum"] * (size > 1)
    kind = draw(st.sampled_from(kinds)) if depth else "dim"
    if kind == "product":
        outer = draw(st.sampled_from(divisors(size)))
        return product(draw(axes(outer, pool, depth - 1)), draw(axes(size // outer, pool, depth - 1)))
    if kind == "sum":
        first = draw(st.integers(1, size - 1))
        return total(draw(axes(first, pool, depth - 1)), draw(axes(size - first, pool, depth - 1)))
    known = [dim for dim in pool if dim.size == size]
    if known and draw(st.booleans()):
        return draw(st.sampled_from(known))
    made = fresh(size)
    if isinstance(made, Dim):
        pool.append(made)
    return made


@st.composite
def equations(draw, count: int = 3) -> list[tuple[Axis, Axis]]:
    """Draw pairs of axes of equal size over shared dimensions."""
    pool: list[Dim] = []
    return [
        (draw(axes(size, pool)), draw(axes(size, pool))) for size in draw(st.lists(SIZES, min_size=1, max_size=count))
    ]


@st.composite
def single_axes(draw) -> Axis:
    return draw(axes(draw(SIZES), []))


def solved(pairs: list[tuple[Axis, Axis]]) -> Solver:
    solver = Solver()
    for left, right in pairs:
        solver.unify(left, right)
    return solver


def pinned(solver: Solver) -> set[Dim]:
    return {atom for conflict in solver.conflicts for axis in conflict for atom in atoms(axis)}


def orders(dims: list[Dim], seed: int) -> dict[Dim, np.ndarray]:
    random = np.random.default_rng(seed)
    return {dim: random.permutation(dim.size) for dim in dims}


def subsets(dims: list[Dim], seed: int) -> dict[Dim, np.ndarray]:
    random = np.random.default_rng(seed)
    return {dim: np.flatnonzero(random.random(dim.size) < 0.6) for dim in dims}


@settings(max_examples=150, deadline=2000)
@given(equations(), st.integers(0, 2**32 - 1))
def test_after_unification_free_dimensions_do_the_same_to_both_sides(pairs, seed):
    solver = solved(pairs)
    fixed = pinned(solver)
    free = [atom for pair in pairs for axis in pair for atom in atoms(axis) if atom not in fixed]
    for taken in (orders(free, seed), subsets(free, seed)):
        for left, right in pairs:
            np.testing.assert_array_equal(entries(left, taken), entries(right, taken))


@settings(max_examples=100, deadline=2000)
@given(equations())
def test_without_conflict_both_sides_hold_the_same_dimensions(pairs):
    if solved(pairs).conflicts:
        return
    for left, right in pairs:
        assert set(atoms(left)) == set(atoms(right))


@settings(max_examples=100, deadline=2000)
@given(equations())
def test_refinement_keeps_sizes(pairs):
    sizes = [(left.size, right.size) for left, right in pairs]
    solved(pairs)
    for (left, right), (a, b) in zip(pairs, sizes, strict=True):
        assert resolve(left).size == left.size == a
        assert resolve(right).size == right.size == b


@settings(deadline=2000)
@given(single_axes(), st.data(), st.integers(0, 2**32 - 1))
def test_an_axis_can_be_cut_anywhere(axis, data, seed):
    if axis.size < 2:
        return
    place = data.draw(st.integers(1, axis.size - 1))
    solver = Solver()
    head, tail = solver.cut(axis, place)
    fixed = pinned(solver)
    taken = orders([atom for atom in atoms(axis) if atom not in fixed], seed)
    assert (head.size, tail.size) == (place, axis.size - place)
    np.testing.assert_array_equal(entries(total(head, tail), taken), entries(axis, taken))


@given(single_axes(), st.integers(0, 2**32 - 1))
def test_an_indicator_marks_the_entries_taken(axis, seed):
    taken = subsets(list(atoms(axis)), seed)
    kept = {dim: np.isin(np.arange(dim.size), index).astype(float) for dim, index in taken.items()}
    np.testing.assert_array_equal(np.flatnonzero(indicator(axis, kept)), np.sort(entries(axis, taken)))


@given(single_axes(), st.integers(0, 2**32 - 1))
def test_a_permutation_and_its_inverse_is_none(axis, seed):
    order = orders(list(atoms(axis)), seed)
    inverse = {dim: np.argsort(index) for dim, index in order.items()}
    np.testing.assert_array_equal(entries(axis, order)[entries(axis, inverse)], np.arange(axis.size))


@given(single_axes(), st.integers(0, 2**32 - 1))
def test_a_selection_after_a_permutation_is_one_selection(axis, seed):
    order, keep = orders(list(atoms(axis)), seed), subsets(list(atoms(axis)), seed)
    twice = entries(axis, order)[entries(axis, keep)]
    np.testing.assert_array_equal(twice, entries(axis, {dim: order[dim][keep[dim]] for dim in order}))


def test_products_without_a_common_radix_are_pinned_and_the_rest_is_not():
    solver, batch, channels = Solver(), Dim(3), Dim(5)
    left = product(batch, Dim(8), Dim(7), Dim(8), Dim(7), channels)
    solver.unify(left, product(batch, Dim(7), Dim(8), Dim(7), Dim(8), channels))
    assert [(conflict.left.size, conflict.right.size) for conflict in solver.conflicts] == [(56, 56), (56, 56)]
    assert not {batch, channels} & pinned(solver)


def test_a_fused_projection_meets_its_parts():
    solver, fused, heads, head = Solver(), Dim(72), Dim(4), Dim(6)
    parts = [product(heads, head) for _ in range(3)]
    solver.unify(fused, total(*parts))
    assert list(atoms(fused)) == [heads, head] * 3


def test_a_sum_of_unequal_parts_refines_the_leading_factor():
    solver, heads, head = Solver(), Dim(6), Dim(8)  # four query heads, one key head, one value head
    queries, keys, values = Dim(32), Dim(8), Dim(8)
    solver.unify(product(heads, head), total(queries, keys, values))
    assert solver.conflicts == []
    assert list(atoms(heads)) == [atom for atom in atoms(queries) if atom is not head]
    assert resolve(keys) is resolve(values) is head


def test_halves_that_are_swapped_are_one_dimension():
    solver, first, second = Solver(), Dim(4), Dim(4)
    solver.unify(total(first, second), total(second, first))
    assert resolve(first) is resolve(second)


def test_a_channel_shuffle_couples_the_groups():
    solver, channels, groups, inner = Solver(), Dim(12), Dim(2), Dim(6)
    solver.unify(channels, product(groups, inner))
    solver.unify(channels, product(inner, groups))
    assert solver.conflicts == [] or pinned(solver) == set(atoms(channels))


def test_axes_of_different_sizes_conflict():
    solver = Solver()
    solver.unify(Dim(3), Dim(4))
    assert len(solver.conflicts) == 1


def test_one_place_needs_no_dimension():
    assert fresh(1) is ONE
    assert list(atoms(product(Dim(1), ONE))) == []


@given(st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=3), unique=True, max_size=30))
def test_symbols_are_distinct_primes(names):
    symbols = Symbols()
    sizes = [symbols.size_of(name) for name in names]
    assert len(set(sizes)) == len(sizes)
    assert all(is_symbolic(size) and is_prime(size) for size in sizes)
    assert [symbols.size_of(name) for name in names] == sizes
    assert [symbols.name_of(size) for size in sizes] == names


def is_prime(number: int) -> bool:
    return all(number % divisor for divisor in [2, *range(3, int(number**0.5) + 1, 2)])


def test_arithmetic_on_symbols_is_arithmetic_on_their_sizes():
    symbols = Symbols()
    batch, length = symbols.size_of("batch"), symbols.size_of("length")
    assert symbols.size_of("12*batch + length") == 12 * batch + length
    assert symbols.size_of("batch // 2") not in (batch, length)
    assert min(batch, length) > FIRST_SYMBOL


@pytest.mark.parametrize("size", [0, 1])
def test_axes_without_content_agree_with_each_other(size):
    solver = Solver()
    solver.unify(fresh(size), Dim(size))
    assert solver.conflicts == []


def test_an_axis_in_normal_form_is_not_built_anew():
    window, channels, row = Dim(4), Dim(3), Dim(2)
    long = total(*[product(window, channels)] * 50, product(row, total(channels, row)))
    assert resolve(long) is long
    row.refine(finer := Dim(2))
    assert resolve(long) is not long
    assert list(atoms(resolve(long)))[-1] is finer


@given(equations(), single_axes())
def test_axes_come_out_in_normal_form(pairs, other):
    solved(pairs)
    for left, right in pairs:
        for axis in (left, right, product(left, other), product(other, right), total(left, other)):
            found = resolve(axis)
            assert isinstance(found, Dim) or _settled(found)


def test_what_is_split_again_and_again_is_followed_without_recursion():
    """Each part is split into a smaller one and its last entry, and that one again: deeper than Python's stack."""
    first = rest = Dim(1000)
    for size in range(999, 400, -1):
        part = Dim(size)
        rest.refine(Sum((part, ONE)))
        rest = part
    assert resolve(first).terms == (rest, *[ONE] * 599)
    chain = last = Dim(3)
    for _ in range(2000):
        last.refine(following := Dim(3))
        last = following
    assert resolve(product(Dim(2), chain)).factors[1] is last
