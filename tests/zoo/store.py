"""Files that are costly to make, kept between test runs under `.pytest_cache/zoo`, by the versions that shape them."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2] / ".pytest_cache" / "zoo"
SHAPED_BY = ("numpy", "onnx", "onnxruntime", "torch")


@cache
def folder() -> Path:
    """The folder of this version of the zoo's source and of the packages behind it."""
    digest = hashlib.sha256("".join(f"{name} {version(name)}\n" for name in SHAPED_BY).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    place = ROOT / digest.hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    return place


def kept(name: str, make: Callable[[], bytes]) -> Path:
    """The file `name`, made now if it is missing. Two processes may make it at once: the last whole one stays."""
    target = folder() / name
    if not target.exists():
        content = make()
        handle, draft = tempfile.mkstemp(dir=folder())
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(draft).replace(target)
    return target
