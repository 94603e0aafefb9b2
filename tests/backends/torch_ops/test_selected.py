"""A product with trained slices computes what the dense one does, and its backward pass keeps and gives the slices."""

import pytest
import torch

from bevel.backends.torch.ops import selected
from bevel.backends.torch.ops.selected import selected_matmul

ROWS, COLUMNS = [1, 3, 4, 5], [0, 2]
OPTIONS = {"row_ranges": ROWS, "column_ranges": COLUMNS}


def places(ranges):
    return [place for start, stop in selected.pairs(ranges) for place in range(start, stop)]


def operands(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, 7, 6), "w": (6, 5), "rows": (3, 5), "columns": (6, 2), "bias": (5,)}
    found = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    for name in ("x", "rows", "columns"):
        found[name].requires_grad_(True)
    return found


def dense(x, w, rows=None, columns=None, bias=None):
    """The same, with a whole matrix of changes that has gradients everywhere."""
    change = torch.zeros_like(w)
    if rows is not None:
        change[places(ROWS)] += rows
    if columns is not None:
        change[:, places(COLUMNS)] += columns
    change = change.detach().requires_grad_(True)
    y = x @ (w + change)
    return (y if bias is None else y + bias), change


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("sides", [("rows",), ("columns",), ("rows", "columns"), ("rows", "columns", "bias")])
def test_it_computes_the_dense_product_and_the_slices_of_its_gradient(sides, transposed):
    given = {name: tensor for name, tensor in operands().items() if name in ("x", "w", *sides)}
    expected, change = dense(**given)
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_x, full = torch.autograd.grad(expected, (given["x"], change), slope)

    held = {**given, "w": given["w"].t().contiguous()} if transposed else given
    y = selected_matmul(**held, **OPTIONS, transposed=transposed)
    torch.testing.assert_close(y, expected)
    y.backward(slope)
    torch.testing.assert_close(given["x"].grad, by_x)
    if "rows" in sides:
        torch.testing.assert_close(given["rows"].grad, full[places(ROWS)])
    if "columns" in sides:
        torch.testing.assert_close(given["columns"].grad, full[:, places(COLUMNS)])


def test_a_gradient_of_the_wrong_slice_is_seen(monkeypatch):
    monkeypatch.setattr(selected, "taken", lambda x, ranges: x[..., : len(places(ranges))])
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        test_it_computes_the_dense_product_and_the_slices_of_its_gradient(("rows",), 0)


def kept(**given):
    """The shapes of what a backward pass keeps, parameters left out."""
    shapes, parameters = [], {id(given[name]) for name in ("w", "rows", "columns") if name in given}

    def pack(tensor):
        if id(tensor) not in parameters:
            shapes.append((tuple(tensor.shape), tensor.untyped_storage().nbytes() // tensor.element_size()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selected_matmul(**given, **OPTIONS)
    return shapes


def test_of_the_activations_only_the_columns_that_meet_trained_rows_are_kept():
    given = operands()
    only_rows = {name: given[name] for name in ("x", "w", "rows")}
    assert kept(**only_rows) == [((2, 7, 3), 2 * 7 * 3)]  # a copy: a view would keep everything
    assert ((2, 7, 6), 2 * 7 * 6) in kept(**only_rows, columns=given["columns"])


def test_it_runs_in_the_precision_of_autocast():
    given = {name: tensor.detach().float().requires_grad_(tensor.requires_grad) for name, tensor in operands().items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = selected_matmul(**given, **OPTIONS)
    y.float().sum().backward()
    assert given["rows"].grad.dtype is given["columns"].grad.dtype is torch.float32
    assert torch.isfinite(given["x"].grad).all()
