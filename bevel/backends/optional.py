"""What is there only where its package is installed."""

from importlib import import_module
from typing import Any

from bevel.errors import UsageError


def backend(part: str = "") -> Any:
    """Return `bevel.backends.torch`, or a part of it, or raise `UsageError` where PyTorch is not installed."""
    try:
        return import_module(".".join(filter(None, ("bevel.backends.torch", part))))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("torch", "safetensors"):
            raise
        raise UsageError(
            f"{error.name} is not installed, which modules and gradients need", remedy="pip install 'bevel[torch]'"
        ) from error
