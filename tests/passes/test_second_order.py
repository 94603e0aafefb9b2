import numpy as np
import pytest

from bevel.passes.fitting.second_order import SecondOrder


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 8))
    return x, rng.standard_normal((5, 8))


def measured(x, w, kept, fitted):
    return float(np.square(x @ w.T - x[:, kept] @ fitted.T).sum(1).mean())


def test_refit_is_the_least_squares_solution(sample):
    x, w = sample
    kept = np.array([0, 2, 3, 7])
    fitted = SecondOrder(x.T @ x / len(x), damping=0).refit(w, kept)
    best, *_ = np.linalg.lstsq(x[:, kept], x @ w.T, rcond=None)
    assert np.allclose(fitted, best.T)
    assert measured(x, w, kept, fitted) < measured(x, w, kept, w[:, kept])


def test_the_error_foretold_is_the_error_measured(sample):
    x, w = sample
    order = SecondOrder(x.T @ x / len(x), damping=0)
    dropped, kept = np.array([1, 4, 5, 6]), np.array([0, 2, 3, 7])
    assert order.error(w, dropped) == pytest.approx(measured(x, w, kept, order.refit(w, kept)), rel=1e-9)
    assert order.error(w, dropped) != pytest.approx(measured(x, w, kept, w[:, kept]), rel=0.1)


def test_scores_are_the_errors_of_single_units(sample):
    x, w = sample
    order = SecondOrder(x.T @ x / len(x))
    units = np.arange(8).reshape(4, 2)[::-1]
    assert np.allclose(order.scores(w, units), [order.error(w, unit) for unit in units])


def test_an_input_that_is_always_zero_costs_nothing():
    order = SecondOrder(np.diag([1.0, 0.0, 2.0]))
    scores = order.scores(np.ones((4, 3)), np.arange(3)[:, None])
    assert scores[1] < 0.02 * scores[0] < scores[2]
    assert np.isfinite(SecondOrder(np.zeros((2, 2))).inverse).all()
