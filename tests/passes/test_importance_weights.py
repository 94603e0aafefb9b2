"""Importances from weights alone, against the same sums written out entry by entry."""

import numpy as np
import pytest

from bevel.passes.importance.fpgm import distances
from bevel.passes.importance.iscs import places_from_end, standard
from bevel.passes.importance.lamp import shares
from tests.passes.nets import Net

# For each network and group: what every entry owns of every coupled matrix or kernel.
OWNED = {
    ("mlp", "w1[1]"): {"w1": lambda w, u: w[:, u], "w2": lambda w, u: w[u]},
    ("convs", "w1[0]"): {"w1": lambda w, u: w[u], "w2": lambda w, u: w[:, u]},
    ("depthwise", "w1[0]"): {"w1": lambda w, u: w[u], "w2": lambda w, u: w[u], "w3": lambda w, u: w[:, u]},
    # channel u of both of the two groups of five
    ("depthwise", "w3[0.1]"): {"w3": lambda w, u: w[[u, u + 5]], "w4": lambda w, u: w[:, u]},
    # a head of keys with its values, its two heads of queries, and what reads them
    ("grouped", "wq[1.0]"): {
        "wq": lambda w, u: w[:, 6 * u : 6 * u + 6],
        "wk": lambda w, u: w[:, 3 * u : 3 * u + 3],
        "wv": lambda w, u: w[:, 3 * u : 3 * u + 3],
        "wo": lambda w, u: w[6 * u : 6 * u + 6],
    },
    # place u within every head of queries and keys
    ("grouped", "wq[1.2]"): {"wq": lambda w, u: w[:, u::3], "wk": lambda w, u: w[:, u::3]},
}
CASES = [pytest.param(*case, id="-".join(case)) for case in OWNED]


def filters(net, network, group):
    """Each coupled weight as one row for each entry of the group."""
    for name, owned in OWNED[network, group].items():
        size = len(net.raw("magnitude", group))
        yield np.stack([owned(net[name], unit).ravel() for unit in range(size)])


@pytest.mark.parametrize(("network", "group"), CASES)
def test_magnitude_is_the_norm_of_all_that_an_entry_owns(network, group):
    net = Net(network)
    expected = np.sqrt(sum(np.square(rows).sum(1) for rows in filters(net, network, group)))
    np.testing.assert_allclose(net.raw("magnitude", group), expected, rtol=1e-5)


@pytest.mark.parametrize(("network", "group"), CASES)
def test_magnitude_l1_adds_sizes(network, group):
    net = Net(network)
    expected = sum(np.abs(rows).sum(1) for rows in filters(net, network, group))
    np.testing.assert_allclose(net.raw("magnitude-l1", group), expected, rtol=1e-5)


@pytest.mark.parametrize(("network", "group"), CASES)
def test_lamp_takes_each_tensor_by_itself(network, group):
    net = Net(network)
    parts = [share_by_share(np.square(rows).sum(1)) for rows in filters(net, network, group)]
    np.testing.assert_allclose(net.raw("lamp", group), np.mean(parts, 0), rtol=1e-5)


@pytest.mark.parametrize(("network", "group"), CASES)
def test_dimap_takes_the_coupled_tensors_as_one(network, group):
    net = Net(network)
    energy = sum(np.square(rows).sum(1) for rows in filters(net, network, group))
    np.testing.assert_allclose(net.raw("dimap", group), share_by_share(energy), rtol=1e-5)


def share_by_share(energy):
    return np.array([each / sum(other for other in energy if other >= each) for each in energy])


@pytest.mark.parametrize(("network", "group"), CASES)
def test_fpgm_adds_distances_to_all_others(network, group):
    net = Net(network)
    expected = sum(
        np.array([sum(np.linalg.norm(row - other) for other in rows) for row in rows])
        for rows in filters(net, network, group)
    )
    np.testing.assert_allclose(net.raw("fpgm", group), expected, rtol=1e-4)


def test_the_distances_of_equal_filters_are_zero_and_blocks_of_rows_change_nothing(monkeypatch):
    rows = np.repeat(np.random.default_rng(0).standard_normal((3, 5)), 4, 0)
    whole = distances(rows)
    monkeypatch.setattr("bevel.passes.importance.fpgm.ROWS", 5)
    np.testing.assert_allclose(distances(rows), whole, rtol=1e-6)
    np.testing.assert_allclose(distances(np.ones((4, 3))), 0, atol=1e-6)


def test_batchnorm_is_the_scale():
    net = Net("convs")
    np.testing.assert_allclose(net.raw("batchnorm", "w1[0]"), np.abs(net["gain"]), rtol=1e-6)


def test_without_batch_normalisation_batchnorm_falls_back_and_says_so():
    net = Net("mlp")
    scores = net.score("batchnorm", "w1[1]")
    np.testing.assert_array_equal(scores["w1[1]"], net.score("magnitude", "w1[1]")["w1[1]"])
    assert "batchnorm says nothing about w1[1]" in scores.notes[0]
    assert Net("convs").score("batchnorm", "w1[0]").notes == ()


def test_iscs_adds_the_standardised_variance_of_filters_and_size_of_shifts():
    net = Net("convs")
    variance = net["w1"].reshape(8, -1).var(1)
    added = np.mean([standard(np.abs(net["b1"])), standard(np.abs(net["shift"]))], 0)
    np.testing.assert_allclose(net.raw("iscs", "w1[0]"), standard(variance) + added, rtol=1e-4)


def test_iscs_sees_neither_what_reads_an_entry_nor_what_scales_it():
    before, after = Net("convs"), Net("convs")
    for name in ("w2", "gain", "mean", "variance"):
        after.put(name, np.roll(after[name], 3, -1))
    np.testing.assert_allclose(after.raw("iscs", "w1[0]"), before.raw("iscs", "w1[0]"))
    after.put("b1", np.roll(after["b1"], 3))
    assert np.abs(after.raw("iscs", "w1[0]") - before.raw("iscs", "w1[0]")).max() > 0.1


def test_iscs_takes_the_vector_that_an_add_adds():
    net = Net("mlp")
    expected = standard(net["w1"].var(0)) + standard(np.abs(net["b1"]))
    np.testing.assert_allclose(net.raw("iscs", "w1[1]"), expected, rtol=1e-4)


def test_iscs_of_heads_pools_what_makes_them():
    net = Net("grouped")
    variances = [rows.var(1) for rows in list(filters(net, "grouped", "wq[1.0]"))[:3]]
    expected = np.mean([standard(variance) for variance in variances], 0)
    np.testing.assert_allclose(net.raw("iscs", "wq[1.0]"), expected, rtol=1e-4, atol=1e-6)


def test_slices_put_a_copy_of_the_best_filter_last():
    net = Net("convs")
    w1 = net["w1"]
    w1[0] *= 5
    w1[1] = 0.99 * w1[0]
    net.put("w1", w1)
    scores, places = net.raw("iscs", "w1[0]"), net.raw("iscs-slices", "w1[0]")
    assert sorted(np.argsort(scores)[-2:]) == [0, 1]
    assert sorted(places[:2]) == [1, 8]


def test_slices_of_one_are_the_order_of_the_scores():
    scores = np.array([0.5, 3.0, 1.0])
    np.testing.assert_array_equal(places_from_end(scores, np.ones((3, 3)), width=1), [1, 3, 2])


def test_equal_shares_for_equal_energies():
    np.testing.assert_allclose(shares(np.array([2.0, 2.0, 0.0])), [0.5, 0.5, 0])
    np.testing.assert_array_equal(shares(np.zeros(2)), [0, 0])


@pytest.mark.parametrize("name", ["magnitude", "magnitude-l1", "lamp", "dimap"])
@pytest.mark.parametrize(("network", "group"), [("mlp", "w1[1]"), ("convs", "w1[0]")])
def test_a_channel_without_weights_ranks_last(name, network, group):
    net = Net(network)
    for weight, axis in (("w1", 1 - (network == "convs")), ("w2", 1 * (network == "convs"))):
        array = net[weight]
        np.moveaxis(array, axis, 0)[5] = 0
        net.put(weight, array)
    scores = net.raw(name, group)
    assert scores[5] == 0
    assert (np.delete(scores, 5) > 0).all()


def test_the_filter_at_the_median_ranks_last_by_fpgm_but_not_by_magnitude():
    net = Net("convs")
    for name, axis in (("w1", 0), ("w2", 1)):
        array = np.moveaxis(net[name], axis, 0)
        array[5] = array[[0, 1, 2, 3, 4, 6, 7]].mean(0)
        array += 10
        net.put(name, np.moveaxis(array, 0, axis))
    assert np.argmin(net.raw("fpgm", "w1[0]")) == 5
    assert np.argmin(net.raw("magnitude", "w1[0]")) != 5


def test_a_closed_gate_ranks_last_by_batchnorm():
    net = Net("convs")
    net.put("gain", np.where(np.arange(8) == 5, 0, net["gain"]))
    assert np.argmin(net.raw("batchnorm", "w1[0]")) == 5
    assert np.argmin(net.raw("magnitude", "w1[0]")) != 5
