"""Run a model whose caches are codes as one that takes in and gives out floats."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.backends.onnxruntime import Session
from bevel.ir.coded import Coded, coded


class Fed:
    """A session that is run on one feed, whatever it is given: to measure it beside one with another interface."""

    def __init__(self, session: Session, feed: Mapping[str, Any]) -> None:
        self._session = session
        self._feed = feed

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return every output by name."""
        return self._session.run(self._feed)


class Decoded:
    """A session whose caches are codes, run with caches in floats: NumPy encodes what it is given, and decodes answers.

    A cache that is given as codes, or left out, is handed on as it is, and its output comes as codes.
    """

    def __init__(self, session: Session, model: ir.Model) -> None:
        self.caches = tuple(cache for cache in coded(model) if cache.inside is None)
        self._session = session

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return every output by name, caches decoded."""
        answers = self._session.run(self.encoded(feed))
        for cache in self.caches:
            if (dtype := _floats(cache, feed)) is not None and cache.present in answers:
                answers[cache.present] = cache.decode(answers[cache.present], dtype)
        return answers

    def fed(self, feed: Mapping[str, Any]) -> Fed:
        """Return the session to be measured on a feed, whose caches are codes before the clock starts."""
        return Fed(self._session, self.encoded(feed))

    def encoded(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return a feed with codes in the place of caches."""
        codes = {
            cache.past: cache.encode(feed[cache.past]) for cache in self.caches if _floats(cache, feed) is not None
        }
        return {**feed, **codes}


def _floats(cache: Coded, feed: Mapping[str, Any]) -> np.dtype[Any] | None:
    """Return the type of the floats that a feed has for a cache."""
    given = feed.get(cache.past)
    return given.dtype if isinstance(given, np.ndarray) and given.dtype.kind == "f" else None
