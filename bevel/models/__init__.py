"""The built-in model: a residual network that reads 8x8 digits, and images to measure it with.

`examples/train_digits.py` made both files.
"""

from pathlib import Path

from bevel.errors import UsageError, nearest


def path(name: str) -> Path:
    """Return the path of a shipped file; raises `UsageError` if there is none of that name.

    >>> path("digits.onnx").name
    'digits.onnx'
    """
    folder = Path(__file__).parent
    shipped = sorted(file.name for file in folder.iterdir() if file.suffix in {".onnx", ".npz"})
    if name not in shipped:
        raise UsageError(f"no built-in model is called {name!r}", where="bevel.models", remedy=nearest(name, shipped))
    return folder / name
