"""Codes for several weights at once: a few vectors of low rank, learnt from each weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bevel.passes.formats.schemes import Operators, Scheme, Sizes, V, coded, coded_sizes, decoded

Array = np.ndarray[Any, Any]

FLOAT: Final = np.dtype(np.float32)
TIMES: Final = 20
REFITS: Final = 3
# Vectors that codewords are learnt from at most, and distances that are held at once.
LEARNT_FROM: Final = 1 << 15
HELD: Final = 1 << 22


@dataclass(frozen=True)
class Vectors(Scheme):
    """Vectors of weights of consecutive inputs, each one of a few; those are of low rank (LR2VQ).

    Rows are scaled to the same energy. Their pieces of `width` inputs are projected to `rank` directions, clustered
    there, and restored from codewords times a basis, which is fitted to the pieces once more. Where no direction
    stands out, as in most trained weights, only as many directions as inputs lose nothing.

    Source: Low-Rank Representation Vector Quantization, LR2VQ (here without its training).
    """

    width: int = 4
    code_bits: int = 8
    rank: int = 3

    def _pieces(self, inner: int) -> int:
        return -(-inner // self.width)

    def sizes(self, out: int, inner: int) -> Sizes:
        """Return codes, codewords, basis and the scales of rows."""
        return {
            **coded_sizes("codes", self.code_bits, out * self._pieces(inner)),
            "codewords": ((1 << self.code_bits, self.rank), FLOAT),
            "basis": ((self.rank, self.width), FLOAT),
            "scale": ((out, 1), FLOAT),
        }

    def encode(self, weights: Array, strength: Array | None = None) -> dict[str, Array]:
        """Return the tensors; errors count by the energies of inputs if these are given."""
        out, inner = weights.shape
        scale = np.sqrt(np.square(weights, dtype=np.float64).mean(1, keepdims=True))
        scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
        padded = np.pad(weights / scale, ((0, 0), (0, -inner % self.width)))
        vectors = padded.reshape(-1, self.width)
        heavy = np.ones(padded.shape[1], np.float32) if strength is None else np.pad(strength, (0, -inner % self.width))
        counts = np.tile(heavy.reshape(-1, self.width).astype(np.float32), (out, 1))
        found = _learnt(vectors, counts, 1 << self.code_bits, self.rank)
        return {
            **coded("codes", self.code_bits, nearest(vectors, found[0] @ found[1], counts)),
            **{"codewords": found[0], "basis": found[1], "scale": scale},
        }

    def decode(self, operators: Operators[V], tensors: Mapping[str, V], out: int, inner: int) -> V:
        """Return the vectors of codes, one after the other, in the scale of their row."""
        pieces = self._pieces(inner)
        codes = decoded(operators, tensors, "codes", self.code_bits, out * pieces)
        vectors = operators.gather(operators.matmul(tensors["codewords"], tensors["basis"]), codes)
        rows = operators.reshape(vectors, (out, pieces * self.width))
        if inner % self.width:
            rows = operators.head(rows, inner, 1)
        return operators.multiply(rows, tensors["scale"])


def nearest(vectors: Array, words: Array, heavy: Array) -> Array:
    """Return for each vector `[n, width]` which of some words is nearest, its entries weighted `[n, width]`.

    >>> words = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> nearest(np.array([[0.9, 0.3], [0.9, 1.3]]), words, np.array([[1.0, 1.0], [0.1, 1.0]])).tolist()
    [1, 0]
    """
    codes = np.empty(len(vectors), np.int64)
    # |v - w|^2 = |v|^2 - 2 v w + w^2, of which the first says nothing about which word is nearest
    squares, twice = np.square(words).T, 2 * words.T
    step = max(HELD // len(words), 1)
    for start in range(0, len(vectors), step):
        part = slice(start, start + step)
        codes[part] = np.argmin(heavy[part] @ squares - (heavy[part] * vectors[part]) @ twice, axis=1)
    return codes


def _learnt(vectors: Array, heavy: Array, many: int, rank: int) -> tuple[Array, Array]:
    """Return codewords `[many, rank]` and a basis `[rank, width]`."""
    every = slice(None, None, -(-len(vectors) // LEARNT_FROM))
    vectors, heavy = vectors[every].astype(np.float32), heavy[every] / max(float(heavy.max()), 1e-30)
    scaled = vectors * np.sqrt(heavy.mean(0))
    _, directions = np.linalg.eigh((scaled.T @ scaled).astype(np.float64))
    basis = np.ascontiguousarray(directions[:, ::-1][:, :rank].T, np.float32)
    short = vectors @ basis.T
    words = _clusters(short, heavy.mean(1), many)
    for _ in range(REFITS):
        codes = nearest(vectors, words @ basis, heavy)
        basis = _basis(vectors, words[codes], heavy)
        words = _words(vectors, codes, basis, heavy, words)
    return words, basis


def _clusters(points: Array, heavy: Array, many: int) -> Array:
    """Return the means of clusters (k-means); one without points takes the point that is farthest from its own."""
    rng = np.random.default_rng(0)
    words = points[rng.choice(len(points), many, replace=len(points) < many)].copy()
    counts = np.repeat(heavy[:, None], points.shape[1], axis=1)
    for _ in range(TIMES):
        codes = nearest(points, words, np.ones_like(points))
        total = np.bincount(codes, heavy, many)
        means = (
            np.stack([np.bincount(codes, column, many) for column in (points * counts).T], axis=1)
            / np.maximum(total, 1e-30)[:, None]
        )
        words = np.where(total[:, None] > 0, means, words).astype(np.float32)
        empty = np.flatnonzero(total == 0)
        far = np.argsort(-heavy * np.square(points - words[codes]).sum(1), kind="stable")[: len(empty)]
        words[empty[: len(far)]] = points[far]
    return words


def _basis(vectors: Array, short: Array, heavy: Array) -> Array:
    """Return the basis of least error: for each of its columns, equations in as many unknowns as the rank."""
    left = np.einsum("np,nr,ns->prs", heavy, short, short, optimize=True)
    right = np.einsum("np,np,nr->pr", heavy, vectors, short, optimize=True)
    return _solved(left, right).T


def _words(vectors: Array, codes: Array, basis: Array, heavy: Array, words: Array) -> Array:
    """Return the codewords of least error; those of no vector stay."""
    many = len(words)
    sums = [
        np.stack([np.bincount(codes, column, many) for column in each.T], axis=1) for each in (heavy, heavy * vectors)
    ]
    left = np.einsum("kp,rp,sp->krs", sums[0], basis, basis, optimize=True)
    found = _solved(left, sums[1] @ basis.T)
    return np.where(sums[0].sum(1, keepdims=True) > 0, found, words).astype(np.float32)


def _solved(left: Array, right: Array) -> Array:
    """Return solutions of small symmetric equations, damped so that there is one."""
    size = left.shape[-1]
    damping = 1e-6 * np.trace(left, axis1=1, axis2=2)[:, None, None] / size + 1e-12
    found: Array = np.linalg.solve(
        left.astype(np.float64) + damping * np.eye(size), right[:, :, None].astype(np.float64)
    )
    return found[:, :, 0].astype(np.float32)


VQ1, VQ2 = (Vectors(f"vq{bits}", width=8 // bits, rank=8 // bits) for bits in (1, 2))
LR2VQ1, LR2VQ2 = (Vectors(f"lr2vq{bits}", width=8 // bits, rank=6 // bits) for bits in (1, 2))
