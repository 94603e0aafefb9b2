"""Python's garbage collector, which walks every object there is each time that a quarter more have come."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def resting() -> Iterator[None]:
    """Let the collector rest: what makes many objects that all stay would have them walked again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def sparing_the_old() -> Iterator[None]:
    """Have only objects made from here on walked, not those of the caller: PyTorch alone makes some 100,000.

    What became garbage before is freed afterwards. A caller who has frozen objects himself is left alone.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
