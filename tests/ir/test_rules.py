"""Every rule is proved on conformance data that nobody here wrote; and a wrong rule is seen to be caught."""

import pytest

from bevel.equivariance import check_rule
from bevel.ir import coupling
from bevel.ir.axes import ONE, total
from bevel.ir.coupling import Coupling
from bevel.ir.site import Site
from tests.ir.cases import cases, forms, sweep

LEAST_OPERATORS = 150


@pytest.mark.slow
def test_what_is_done_to_the_inputs_is_found_again_in_the_outputs():
    tally = sweep()  # one test, since a fixture would be made by every process that runs some of several
    assert tally.forms > 2000
    assert tally.disagreements == []
    assert tally.refused == []
    assert [skipped for skipped in tally.skipped if not untriable(skipped)] == []
    # Most operator types have a free dimension that was tried.
    assert len(tally.permuted_by) >= LEAST_OPERATORS
    assert len(tally.selected_by) >= LEAST_OPERATORS


def untriable(skipped: str) -> bool:
    """Random operators; and masking in opsets without broadcasting, whose models are tried in a converted form too."""
    return "differ from run to run" in skipped or "implementation for Mul(6)" in skipped


# Planted lies: each states an operator almost as it is.


def softmax_without_statistics(site: Site) -> None:
    site.set(0, site.axes(0))


def matmul_transposed(site: Site) -> Coupling:
    return Coupling("... i k, ... k j -> ... j i", sums="k")


def layer_normalization_without_gain(site: Site) -> Coupling:
    return Coupling("... c, k, k -> ... c, ... 1, ... 1", statistics="c")


def concat_in_reverse(site: Site) -> None:
    place = site.position(site.integer("axis"), len(site.axes(0)))
    operands = [site.axes(index) for index in range(site.inputs)]
    for axes in operands[1:]:
        site.equate_all([*operands[0][:place], *operands[0][place + 1 :]], [*axes[:place], *axes[place + 1 :]])
    joined = total(*(axes[place] for axes in reversed(operands)))
    site.set(0, (*operands[0][:place], joined, *operands[0][place + 1 :]))


def split_in_reverse(site: Site) -> None:
    axes = site.axes(0)
    place = site.position(site.integer("axis"), len(axes))
    part, rest = site.facts.solver.cut(axes[place], axes[place].size // 2)
    for index, taken in enumerate((rest, part)):
        site.set(index, (*axes[:place], taken, *axes[place + 1 :]))


def conv_without_groups(site: Site) -> Coupling:
    return Coupling("n c *, o i *, o -> n o *", sums="i")


def conv_with_interleaved_groups(site: Site) -> Coupling:
    return Coupling(
        "n (i g) *, (o g) i *, (o g) -> n (o g) *",
        sizes={"g": site.integer("group", 1)},
        sums="i",
        states={"group": "g"},
    )


def gather_of_free_places(site: Site) -> None:
    data, place = site.axes(0), site.integer("axis")
    site.set(0, (*data[:place], *site.axes(1), *data[place + 1 :]))


def mean_as_a_sum(site: Site) -> None:
    axes = site.axes(0)
    for place, axis in enumerate(axes):
        site.sums_over(axis, 0, place)
    site.set(0, [ONE] * len(axes))


def batch_normalization_without_variance(site: Site) -> Coupling:
    return Coupling("n c *, c, c, c, v -> n c *")


def transpose_the_other_way(site: Site) -> None:
    axes, order = site.axes(0), site.integer_list("perm") or []
    site.set(0, [axes[order.index(place)] for place in range(len(axes))])


LIES = [
    ("Softmax", softmax_without_statistics, "test_softmax_axis_1"),
    ("MatMul", matmul_transposed, "test_matmul_2d"),
    ("LayerNormalization", layer_normalization_without_gain, "test_layer_normalization_2d_axis1"),
    ("Concat", concat_in_reverse, "test_concat_2d_axis_1"),
    ("Split", split_in_reverse, "test_split_equal_parts_2d"),
    ("Conv", conv_without_groups, "test_Conv2d_groups_converted"),
    ("Conv", conv_with_interleaved_groups, "test_Conv2d_groups_converted"),
    ("Gather", gather_of_free_places, "test_gather_1"),
    ("ReduceMean", mean_as_a_sum, "test_reduce_mean_default_axes_keepdims_example"),
    ("BatchNormalization", batch_normalization_without_variance, "test_batchnorm_example"),
    ("Transpose", transpose_the_other_way, "test_transpose_all_permutations_4"),
]


@pytest.mark.parametrize(("op_type", "lie", "name"), LIES, ids=[lie.__name__ for _, lie, _ in LIES])
def test_a_rule_that_lies_is_caught(op_type, lie, name, monkeypatch):
    assert disagreements(name) == []
    monkeypatch.setitem(coupling._RULES, ("", op_type), lie)
    assert disagreements(name) != []


def disagreements(name: str) -> list[str]:
    (case,) = [case for case in cases() if case.name == name]
    return [str(found) for form in forms(case) for found in check_rule(form.model, form.feed).disagreements]
