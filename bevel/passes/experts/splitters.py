"""Which hidden entries an expert has: splitters, found by name among the entry points `bevel.splitters`.

A splitter takes the evidence of a layer, how many experts are routed and how many entries the shared one has, and
returns a partition; all routed experts have one size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from scipy.sparse.linalg import eigsh

from bevel.ir.split import Partition
from bevel.passes.experts.balance import clusters, deal
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.routers import normalized, unit_rows

Array = np.ndarray[Any, Any]
Splitter = Callable[[Evidence, int, int, np.random.Generator], Partition]

# CMoE: of each row, so many hidden entries count as active.
MARKED: Final = 10
# Eigenvectors of the graph beside one for each expert.
MORE: Final = 4
# Up to so many entries all eigenvectors are computed; beyond that a few of them come sooner by iteration.
MOST_DENSE: Final = 1024


def contiguous(evidence: Evidence, routed: int, shared: int, rng: np.random.Generator) -> Partition:
    """Cut the hidden axis into slices (FactorLLM)."""
    return _grouped(np.arange(evidence.layer.size), routed, shared)


def by_chance(evidence: Evidence, routed: int, shared: int, rng: np.random.Generator) -> Partition:
    """Deal the entries at random (LLaMA-MoE)."""
    return _grouped(rng.permutation(evidence.layer.size), routed, shared)


def _grouped(order: Array, routed: int, shared: int) -> Partition:
    return Partition(np.sort(order[:shared]), tuple(np.sort(part) for part in np.split(order[shared:], routed)))


def by_weights(evidence: Evidence, routed: int, shared: int, rng: np.random.Generator) -> Partition:
    """Cluster the directions of the gates' weights (MoEfication); the shared expert has those active most often."""
    return _clustered(evidence, routed, shared, unit_rows(evidence.gates[0]), evidence.losses, rng)


def dealt(evidence: Evidence, routed: int, shared: int, rng: np.random.Generator) -> Partition:
    """Share the most important entries, and deal the rest out one by one (Dense2MoE, second order for Taylor)."""
    order = np.argsort(-evidence.losses, kind="stable")
    rest = order[shared:]
    return Partition(np.sort(order[:shared]), tuple(np.sort(rest[expert::routed]) for expert in range(routed)))


def markers(evidence: Evidence) -> Array:
    """Return for each hidden entry the rows among whose largest it is, `[entries, rows]`, as CMoE has it.

    The largest are those of the layer with rows of unit length, both of what it reads and of its weights.
    """
    model = normalized(evidence.parts, np.arange(evidence.layer.size), evidence.rows)
    (hidden,) = evidence.run(model, unit_rows(evidence.rows[evidence.fitted]))
    marked = min(MARKED, evidence.layer.size)
    largest = np.argpartition(-np.abs(hidden), marked - 1, axis=1)[:, :marked]
    found = np.zeros(hidden.shape, np.float32)
    np.put_along_axis(found, largest, 1.0, axis=1)
    return found.T


def by_rates(evidence: Evidence, routed: int, shared: int, rng: np.random.Generator) -> Partition:
    """Share what is active most often, and cluster the rest by the rows it is active in (CMoE).

    Centres are the entries active most often among those left; one assignment by the least L1 distance, as in the
    authors' code.
    """
    marked = markers(evidence)
    order = np.argsort(-marked.mean(1), kind="stable")
    rest = np.sort(order[shared:])
    centres = marked[order[shared : shared + routed]]
    owners = deal(manhattan(marked[rest], centres))
    return Partition(np.sort(order[:shared]), tuple(rest[owners == expert] for expert in range(routed)))


def manhattan(points: Array, centres: Array) -> Array:
    """Return L1 distances of zeros and ones to centres between them, `[points, centres]`.

    >>> manhattan(np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[0.0, 0.5]])).tolist()
    [[0.5], [1.5]]
    """
    return np.asarray(points @ (1 - 2 * centres).T + centres.sum(1))


def by_profiles(evidence: Evidence, routed: int, shared: int, rng: np.random.Generator) -> Partition:
    """Cluster the mean activation of each entry in each sample (ExpertWeaver); the shared expert has the largest."""
    profile = profiles(evidence)
    return _clustered(evidence, routed, shared, profile, np.abs(profile).mean(1), rng)


def profiles(evidence: Evidence) -> Array:
    """Return the mean of what the activation gives, by entry and sample, `[entries, samples]`."""
    rows, samples = evidence.bent[evidence.fitted], evidence.samples[evidence.fitted]
    starts = np.flatnonzero(np.diff(samples, prepend=samples[:1] - 1))
    counts = np.diff([*starts, len(samples)])
    return np.asarray((np.add.reduceat(rows.astype(np.float64), starts, axis=0) / counts[:, None]).T)


def by_coactivation(evidence: Evidence, routed: int, shared: int, rng: np.random.Generator) -> Partition:
    """Cut the graph of which entries are active together (MoEfication): clusters of its leading eigenvectors.

    An edge is the correlation of magnitudes, where MoEfication counts the rows in which both are positive: that would
    tell apart nothing but entries behind a Relu.
    """
    hidden = np.abs(evidence.hidden[evidence.fitted])
    root = np.sqrt(np.maximum(np.square(hidden, dtype=np.float64).mean(0), 1e-30))
    graph = np.asarray(hidden.T @ hidden, np.float64) / len(hidden) / root[:, None] / root
    scores = evidence.losses
    rest = np.sort(np.argsort(-scores, kind="stable")[shared:])
    energies, vectors = _leading(graph[np.ix_(rest, rest)], min(routed + MORE, len(rest)))
    points = np.zeros((len(graph), len(energies)))
    points[rest] = unit_rows(vectors * np.sqrt(np.maximum(energies, 0)))
    return _clustered(evidence, routed, shared, points, scores, rng)


def _leading(graph: Array, count: int) -> tuple[Array, Array]:
    """Return the largest eigenvalues of a symmetric matrix and their vectors, as columns."""
    if len(graph) <= MOST_DENSE:
        energies, vectors = np.linalg.eigh(graph)
        return energies[-count:], vectors[:, -count:]
    found: tuple[Array, Array] = eigsh(graph, count, v0=np.ones(len(graph)))
    return found


def _clustered(
    evidence: Evidence, routed: int, shared: int, points: Array, scores: Array, rng: np.random.Generator
) -> Partition:
    """Share the entries with the largest scores, and put the others into clusters of one size."""
    order = np.argsort(-scores, kind="stable")
    rest = np.sort(order[shared:])
    owners = clusters(np.asarray(points[rest], np.float64), routed, rng)
    return Partition(np.sort(order[:shared]), tuple(rest[owners == expert] for expert in range(routed)))


def variations(evidence: Evidence) -> Array:
    """Return how much each entry's mean activation varies from sample to sample: deviation over mean (ExpertWeaver)."""
    profile = np.abs(profiles(evidence))
    return np.asarray(profile.std(1) / (profile.mean(1) + 1e-9))
