"""Products of matrices."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.aligned import aligned
from bevel.backends.torch.ops.wide import modular
from bevel.backends.torch.table import PLAIN, lower, write

write("MatMul", "{0} @ {1}", types=PLAIN)


@lower("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of matrices, or of stacks of them."""
    return modular(torch.matmul, a, b)


@lower("Gemm", since=7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Return alpha * a @ b + beta * c, with `a` and `b` transposed where asked for."""
    a = a.t() if transA else a
    if a.is_floating_point() and alpha == beta == 1 and (c is None or c.dim() == 1):
        return F.linear(a, b if transB else b.t(), c)
    product = _scaled(matmul(a, b.t() if transB else b), alpha)
    return product if c is None else modular(torch.add, product, _scaled(c, beta))


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else (x * factor).to(x.dtype)


@lower("Gemm", until=6)
def gemm_aligned(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    broadcast: int = 0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Return alpha * a @ b + beta * c; `c` is broadcast where that is asked for."""
    return gemm(a, b, c if broadcast else aligned(a, c, None, 0), alpha=alpha, beta=beta, transA=transA, transB=transB)


@lower("Einsum")
def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Return the sum of products that an equation between axes states."""
    return modular(partial(torch.einsum, equation), *operands)


@lower("Det")
def determinant(x: Tensor) -> Tensor:
    """Return the determinants of the matrices in the last two axes."""
    wide = x if x.dtype is torch.float64 else x.to(torch.float32)
    result: Tensor = torch.linalg.det(wide)
    return result.to(x.dtype)
