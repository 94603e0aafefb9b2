"""Experts that take turns, and a router that always asks for the first."""

import numpy as np

from bevel.ir.split import Partition
from bevel.passes.experts.routers import Linear


def turns(evidence, routed, shared, rng):
    """Deal the hidden entries out in turns."""
    entries = np.arange(evidence.layer.size)
    return Partition(entries[:shared], tuple(entries[shared + expert :: routed] for expert in range(routed)))


def first(evidence, partition, active):
    """Ask for the first experts."""
    count = len(partition.routed)
    return Linear(np.zeros((evidence.layer.channels[0], count)), -np.arange(count, dtype=float))
