"""The torch functions under `torch.export` with symbolic sizes, and their gradients."""

import pytest
import torch
from torch import nn

from bevel.backends.torch.ops import creation, dropout, indexing, layout, linear, ordering, reduction, scans, slicing
from bevel.backends.torch.ops.arithmetic import maximum_of, power
from bevel.backends.torch.ops.elementwise import clip, sign

CPU = torch.device("cpu")
LOWEST = -(2**63)

CASES = {
    "slice backwards": lambda x: slicing.slice_of(x, [-1, 2], [LOWEST, 0], [0, 1], [-1, -2]),
    "slice backwards from the front": lambda x: slicing.slice_of(x, [x.shape[0] - 1], [1], [0], [-1]),
    "slice forwards": lambda x: slicing.slice_of(x, [1, -3], [2**63 - 1, -1], [0, 1], [2, 1]),
    "pad": lambda x: slicing.pad(x, [1, 0, -1, 2], 3.0),
    "pad to a multiple": lambda x: slicing.pad(x, [0, 0, -x.shape[0] % 4, 0]),
    "reflect": lambda x: slicing.pad(x, [2, 1, 3, 2], mode="reflect"),
    "wrap": lambda x: slicing.pad(x, [2, 1, 3, 2], mode="wrap"),
    "edge": lambda x: slicing.pad(x, [2, 3], None, [0], mode="edge"),
    "crop": lambda x: slicing.center_crop_pad(x, [4, 9]),
    "expand": lambda x: layout.expand(x, [3, 1, 1]),
    "expand to sizes": lambda x: layout.expand(x[:, :1], [x.shape[0], x.shape[0]]),
    "reshape": lambda x: layout.reshape(x, [0, 2, -1]),
    "flatten": lambda x: layout.flatten_to_matrix(x.unsqueeze(0), axis=2),
    "split": lambda x: layout.split(x, axis=1, outputs=2)[1],
    "tile": lambda x: layout.tile(x, [2, 3]),
    "squeeze": lambda x: layout.squeeze(x.unsqueeze(0), [0]),
    "shape": lambda x: layout.shape_of(x, device=CPU) + layout.size_of(x, device=CPU),
    "gather": lambda x: indexing.gather(x, torch.tensor([[-1, 0]]), axis=0),
    "gather elements": lambda x: indexing.gather_elements(x, torch.tensor([[-1, 0]]), axis=0),
    "gather nd": lambda x: indexing.gather_nd(x, torch.full((x.shape[0], 1), -1), batch_dims=1),
    "scatter elements": lambda x: indexing.scatter_elements(x, torch.tensor([[-1, 0]]), torch.ones(1, 2), axis=0),
    "scatter nd": lambda x: indexing.scatter_nd(x, torch.tensor([[-1], [0]]), torch.ones(2, 6), reduction="add"),
    "one hot": lambda x: indexing.one_hot(torch.tensor([1, -1]), x.shape[0], torch.tensor([0.0, 2.0]), axis=0),
    "reverse": lambda x: indexing.reverse_sequence(x, torch.tensor([1, 2, 3, 2, 1, 3])),
    "write": lambda x: indexing.tensor_scatter(x.unsqueeze(0), x[:2].unsqueeze(0), torch.tensor([1]), mode="circular"),
    "top": lambda x: ordering.top_k(x, 2, axis=0)[0],
    "sum": lambda x: reduction.reduce_sum(x, [0]),
    "product": lambda x: reduction.reduce_prod(x, [-1, 0]),
    "largest": lambda x: reduction.reduce_max(x, [0]),
    "norm": lambda x: reduction.reduce_l2(x),
    "last place": lambda x: scans.arg_max(x, axis=0, select_last_index=1),
    "running sum": lambda x: scans.cumulative_sum(x, 0, exclusive=1, reverse=1),
    "softmax": lambda x: scans.softmax_from(x, axis=0),
    "hardmax": lambda x: scans.hardmax(x, axis=0),
    "range": lambda x: creation.range_of(0, x.shape[0], 2, output_type=7, device=CPU),
    "constant": lambda x: creation.constant_of_shape([x.shape[0], 2], device=CPU),
    "eye": lambda x: creation.eye_like(x, k=1),
    "gemm": lambda x: linear.gemm(x, x, torch.ones(1), transB=1, alpha=0.5),
    "einsum": lambda x: linear.einsum(x, x, equation="ij,kj->ik"),
    "dropout": lambda x: dropout.dropout(x, 0.5, outputs=2, training=False)[1],
    "clip": lambda x: clip(x, torch.tensor(-0.5), torch.tensor(0.5)),
    "power": lambda x: power(x, torch.tensor(3)),
    "maximum": lambda x: maximum_of(x, sign(x), x[:1]),
}


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("case", CASES)
def test_sizes_stay_symbolic(case):
    torch.manual_seed(0)
    module = Calls(CASES[case])
    program = torch.export.export(
        module, (torch.randn(5, 6),), dynamic_shapes=({0: torch.export.Dim("n", min=4, max=64)},)
    )
    other = torch.randn(11, 6)
    torch.testing.assert_close(program.module()(other), module(other))


def test_a_function_that_fixes_a_size_is_caught():
    with pytest.raises((ValueError, torch._dynamo.exc.UserError)):
        torch.export.export(
            Calls(lambda x: x.reshape(int(x.shape[0]), -1)),
            (torch.randn(5, 6),),
            dynamic_shapes=({0: torch.export.Dim("n", min=4, max=64)},),
        )


SMOOTH = [
    "slice backwards", "pad", "reflect", "wrap", "crop", "expand", "gather", "gather elements", "gather nd",
    "scatter elements", "scatter nd", "reverse", "write", "top", "product", "largest", "norm", "running sum", "softmax",
    "gemm", "einsum", "clip", "power",
]  # fmt: skip


@pytest.mark.parametrize("case", SMOOTH)
def test_gradients_are_those_of_finite_differences(case):
    torch.manual_seed(1)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.autograd.gradcheck(CASES[case], (x,))
    finally:
        torch.set_default_dtype(torch.float32)
