"""How many times faster one session runs than another, where other work goes on beside it."""

import time
from collections.abc import Mapping
from typing import Any

from bevel.backends.onnxruntime import Session

ROUNDS = 12


def faster(before: Session, after: Session, feed: Mapping[str, Any], rounds: int = ROUNDS) -> float:
    """Return the ratio of the least processor times of a run.

    Both sessions have one thread, which is the caller's; they take turns. Processor time leaves out the waits for a
    core that others have, and the least of it most of what others do to the caches.
    """
    times: list[list[float]] = [[], []]
    for session in (before, after):
        session.run(feed)
    for _ in range(rounds):
        for session, spent in zip((before, after), times, strict=True):
            start = time.thread_time()
            session.run(feed)
            spent.append(time.thread_time() - start)
    return min(times[0]) / min(times[1])
