"""Save what is needed to see a failure again: the pass's input model, its text, the inputs and the error."""

from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnx_ir as ir

from bevel.errors import BevelError
from bevel.ir.cost import cost
from bevel.passes.calibration import Calibration

# Models above this size are saved with their weights in a second file: protobuf ends at 2 GB.
ONE_FILE_BYTES = 2**30
FEEDS_KEPT = 4


def keep(folder: Path, model: ir.Model, step: str, seed: int, feeds: Calibration, error: BevelError) -> None:
    """Write `input.onnx`, `feed_N.npz`, `pipeline.txt`, `error.txt` and the command into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    big = cost(model).bytes > ONE_FILE_BYTES
    ir.save(model.clone(), folder / "input.onnx", external_data="input.weights" if big else None)
    for number, feed in enumerate(islice(feeds, FEEDS_KEPT)):
        _save(folder / f"feed_{number}.npz", _arrays(feed))
    (folder / "pipeline.txt").write_text(f"{step}\n")
    (folder / "error.txt").write_text(f"{error}\n")
    command = f'optimize input.onnx --passes "$(cat pipeline.txt)" --calibration . --seed {seed} -o output.onnx\n'
    (folder / "command.txt").write_text(command)


def _save(path: Path, arrays: dict[str, Any]) -> None:
    """Write an `.npz` of arrays under any names; `np.savez` takes some for its own parameters, `file` for one."""
    with ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _arrays(feed: dict[str, Any]) -> dict[str, Any]:
    """Return what an `.npz` can hold: arrays, strings as text; sequences and absent optionals are left out."""
    arrays = {name: np.asarray(value) for name, value in feed.items() if isinstance(value, np.ndarray)}
    return {name: array.astype(str) if array.dtype.kind == "O" else array for name, array in arrays.items()}
