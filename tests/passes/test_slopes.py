from itertools import product

import numpy as np
import pytest

from bevel.passes.fitting.second_order import SecondOrder
from bevel.passes.sparsity import slopes as room
from bevel.passes.sparsity.slopes import by_slope, counts_by_slope, curve, energy

GENTLE, STEEP = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 2.0, 3.0, 0.25])


def slope_of(share):
    return by_slope([GENTLE, STEEP], [np.full(4, 10.0)] * 2, share)


def test_one_slope_for_all_layers():
    assert slope_of(0.0) == [0, 0]
    assert slope_of(0.375) == [2, 1]
    assert slope_of(0.5) == [3, 1]
    assert slope_of(1.0) == [4, 4]


def test_every_layer_keeps_half_of_what_stays(monkeypatch):
    assert by_slope([GENTLE / 100, STEEP], [np.full(4, 10.0)] * 2, 0.5) == [3, 1]
    monkeypatch.setattr(room, "LEAST_KEPT", 0.0)
    assert by_slope([GENTLE / 100, STEEP], [np.full(4, 10.0)] * 2, 0.5) == [4, 0]


def test_large_units_count_as_they_are():
    assert by_slope([GENTLE, STEEP], [np.full(4, 30.0), np.full(4, 10.0)], 0.3) == [2, 0]


def test_the_slope_is_the_best_of_all_choices(monkeypatch):
    monkeypatch.setattr(room, "LEAST_KEPT", 0.0)
    rng = np.random.default_rng(1)
    slopes = [np.sort(rng.random(4)) for _ in range(3)]

    def damage(counts):
        return sum(slope[:count].sum() for slope, count in zip(slopes, counts, strict=True))

    every = [counts for counts in product(range(5), repeat=3) if sum(counts) == 6]
    assert damage(by_slope(slopes, [np.ones(4)] * 3, 0.5)) == pytest.approx(min(map(damage, every)))


@pytest.mark.parametrize("share", [0.0, 0.37, 0.5, 0.9, 1.0])
def test_single_weights_are_counted_to_the_very_one(share):
    rng = np.random.default_rng(0)
    scores = [rng.random(size) * scale for size, scale in ((3000, 1.0), (777, 5.0), (9, 0.1))]
    counts = counts_by_slope([curve(each) for each in scores], share)
    assert sum(counts) == round(share * 3786)
    assert all(0 <= count <= each.size for count, each in zip(counts, scores, strict=True))


def test_a_curve_keeps_the_sum_and_rises():
    scores = np.random.default_rng(0).random((2, 30, 40))
    means, sizes = curve(scores)
    assert len(means) == room.STEPS
    assert np.all(np.diff(means) >= 0)
    assert means @ sizes == pytest.approx(scores.sum())


def test_energy_is_the_mean_square_of_the_output():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((50, 4)), rng.standard_normal((1, 3, 4))
    found = energy(w, [SecondOrder(x.T @ x / 50, damping=0)])
    assert found == pytest.approx(np.sum((x @ w[0].T) ** 2) / 50)
    assert energy(w, []) == pytest.approx(np.sum(w**2))
    assert energy(0 * w, []) > 0
