"""Counts of n-grams: of words as arrays of objects, or of integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevel.backends.torch.table import lower


@lower("TfIdfVectorizer")
def tf_idf_vectorizer(
    x: Any,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] = (),
    pool_strings: Sequence[str] = (),
    weights: Sequence[float] = (),
    device: torch.device,
) -> Tensor:
    """Count the n-grams of a pool in each row; they may skip as many entries between two of theirs as are allowed.

    The mode says what becomes of a count: `TF` the count, `IDF` the weight of an n-gram that is there, `TFIDF` both.
    """
    pool = _pool(list(pool_strings) or list(pool_int64s), ngram_counts, ngram_indexes)
    lines = x.tolist()
    rows = lines if x.ndim == 2 else [lines if x.ndim else [lines]]
    counts = np.zeros((len(rows), max(ngram_indexes) + 1), np.float32)
    lengths = range(min_gram_length, max_gram_length + 1)
    for row, entries in enumerate(rows):
        for gram in _grams(entries, lengths, max_skip_count):
            if gram in pool:
                counts[row, pool[gram]] += 1
    if mode == "IDF":
        counts = (counts > 0).astype(np.float32)
    if weights and mode != "TF":
        counts *= np.array(weights, np.float32)
    return torch.tensor(counts if x.ndim == 2 else counts[0], device=device)


def _pool(entries: Sequence[Any], starts: Sequence[int], places: Sequence[int]) -> Mapping[tuple[Any, ...], int]:
    """Return the place of each n-gram in a row of counts; a pool holds single entries, then pairs, and so on."""
    pool: dict[tuple[Any, ...], int] = {}
    ends = [*starts[1:], len(entries)]
    place = iter(places)
    for length, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
        for first in range(start, end, length):
            pool[tuple(entries[first : first + length])] = next(place)
    return pool


def _grams(entries: Sequence[Any], lengths: Sequence[int], most: int) -> Iterator[tuple[Any, ...]]:
    """Yield each n-gram for each distance between its entries; single entries have none, and are counted once."""
    for length in lengths:
        for distance in range(1, 2 if length == 1 else most + 2):
            for first in range(len(entries) - distance * (length - 1)):
                yield tuple(entries[first : first + distance * length : distance][:length])
