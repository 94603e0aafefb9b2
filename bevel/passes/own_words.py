"""Text for a language model in its own words, where nobody has given any.

A model that predicts each next token knows what text is like. Random tokens are not like it, and what is fitted to
them serves text badly; what the model says itself serves as well as text. Sampled token by token, it takes as many runs
as there are tokens. So all are sampled at once, each anew from what the model predicts after those before it, a few
times: with the same Gumbel noise each time, after `k` times the first `k` tokens are as if sampled one by one, and the
others go together from neighbour to neighbour, which is most of what counts.

Source: LLM-QAT (Liu et al. 2023) and Williams and Aletras 2024 for text by the model itself as calibration data; Song
et al. 2021, Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving, for sampling all at once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from bevel.errors import BevelError
from bevel.ir.signature import Input
from bevel.passes.calibration import Calibration, Feed

# How often all tokens are sampled anew. On a character GPT, 4 times are as good as one for each token.
ROUNDS: Final = 4
# A token may move the logits before it by so much of what it moves its own: rounding, of dynamic quantization.
UNMOVED: Final = 0.01
TINY: Final = 1e-30

Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Runs(Protocol):
    """A loaded model."""

    def run(self, feed: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return every output by name."""


@dataclass(frozen=True)
class LanguageModel:
    """Its input of `tokens` `[rows, length]`, and its output of `logits` of the next ones, `[rows, length, size]`."""

    tokens: str
    logits: str

    def rewritten(self, feed: Feed, run: Run, rng: np.random.Generator) -> Feed:
        """Return a feed with text in the place of its tokens; the first of each row stays.

        A feed stays as it is if the model does not run on its own words.
        """
        noise: Array | None = None
        written = feed
        try:
            for _ in range(ROUNDS):
                logits = _logits(run(written)[self.logits])
                if noise is None:
                    noise = -np.log(np.maximum(rng.standard_exponential(logits.shape, np.float32), TINY))  # Gumbel's
                tokens = written[self.tokens].copy()
                tokens[:, 1:] = (logits + noise).argmax(-1)[:, :-1]
                written = {**written, self.tokens: tokens}
        except BevelError:
            return feed
        return written


def language_model(inputs: tuple[Input, ...], feed: Feed, run: Run) -> LanguageModel | None:
    """Return where a model reads and predicts tokens; None for one that does not, or that looks ahead.

    Three runs tell: the last token must not move the logits before it, and the first must move the last ones.
    """
    try:
        return _language_model(inputs, feed, run)
    except BevelError:  # it runs on this feed, and not on other tokens
        return None


def _language_model(inputs: tuple[Input, ...], feed: Feed, run: Run) -> LanguageModel | None:
    plain: Mapping[str, Any] | None = None
    for wanted in inputs:
        tokens = feed.get(wanted.name)
        if wanted.below is None or not isinstance(tokens, np.ndarray) or tokens.ndim != 2 or tokens.shape[1] < 3:
            continue
        plain = run(feed) if plain is None else plain
        for name in [name for name, answer in plain.items() if _predicts(answer, tokens, wanted.below)]:
            moved = [_moved(feed, wanted, place, plain[name], name, run) for place in (0, -1)]
            if moved[0][-1] > 0 and moved[1][-1] > 0 and moved[1][:-1].max() <= UNMOVED * moved[1][-1]:
                return LanguageModel(wanted.name, name)
    return None


def _predicts(answer: Any, tokens: Array, below: int) -> bool:
    """Say whether an output has the shape of logits of the next tokens, of tokens that can be read."""
    if not isinstance(answer, np.ndarray) or answer.ndim != 3 or answer.dtype.kind != "f" or not answer.size:
        return False
    return bool(answer.shape[:2] == tokens.shape and 2 < answer.shape[2] <= below)


def _moved(feed: Feed, wanted: Input, place: int, plain: Array, name: str, run: Run) -> Array:
    """Return how far another token at a place moves the logits at each, `[length]`."""
    assert wanted.below is not None
    tokens = feed[wanted.name].copy()
    tokens[:, place] = (tokens[:, place] + 1) % wanted.below
    answer = run({**feed, wanted.name: tokens})[name]
    return np.asarray(np.abs(answer.astype(np.float32) - plain).max((0, 2)))


def _logits(answer: Array) -> Array:
    """Return logits, also of a model that ends in a softmax."""
    wide = answer.astype(np.float32)
    if wide.min() >= 0 and np.allclose(wide.sum(-1), 1, atol=1e-2):
        return np.asarray(np.log(np.maximum(wide, TINY)))
    return wide


def in_own_words(
    feeds: Calibration,
    inputs: tuple[Input, ...],
    seed: int,
    run: Run,
    opens: Callable[[], AbstractContextManager[Runs]],
) -> Calibration:
    """Return made-up feeds with text where the model is one that predicts it, and the same feeds where it is not.

    Those that are there are rewritten now, with `run`; those to come when they are first read, for which `opens` loads
    the model. The same feeds and seed give the same text on one machine.
    """
    first = next(iter(feeds), None)
    found = None if first is None else language_model(inputs, first, run)
    if found is None:
        return feeds
    held = [found.rewritten(feed, run, np.random.default_rng([seed, number])) for number, feed in enumerate(feeds)]
    return _rewritten(feeds, found, seed, opens, held)


def _rewritten(
    feeds: Calibration,
    found: LanguageModel,
    seed: int,
    opens: Callable[[], AbstractContextManager[Runs]],
    held: list[Feed],
) -> Calibration:
    def read() -> Iterator[Feed]:
        with ExitStack() as stack:
            session: Runs | None = None
            for number, feed in enumerate(feeds):
                if number == len(held):
                    session = session or stack.enter_context(opens())
                    held.append(found.rewritten(feed, session.run, np.random.default_rng([seed, number])))
                yield held[number]

    def more(count: int) -> Calibration:
        assert feeds.more is not None
        return _rewritten(feeds.more(count), found, seed, opens, held)

    return Calibration(read, "made-up inputs, text in the model's own words", more, lambda: True)
