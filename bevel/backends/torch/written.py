"""A graph module as files: Python source that needs torch and safetensors only, and its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from torch import Tensor, nn

from bevel.backends.files import temporary
from bevel.backends.torch.bundle import bundle
from bevel.backends.torch.lines import INDENT
from bevel.backends.torch.parameters import Parameters, hold
from bevel.errors import UsageError

if TYPE_CHECKING:
    from bevel.backends.torch.module import GraphModule

_HEAD: Final = '''"""A neural network, written by Bevel. `load()` reads its weights from the file beside this one."""

from __future__ import annotations

{imports}


{definitions}


# Every tensor: its name, shape and type, and whether it is trained.
TENSORS = (
{tensors}
)
# Names under which a tensor is held again, by the name it has above.
TIED = {{{tied}}}


class Model(Parameters):
    """The network; `forward` takes {arguments}."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape, kind, trained in TENSORS:
            hold(self, name, torch.empty(shape, dtype=kind), trained=trained)
        for name, original in TIED.items():
            place, _, last = original.rpartition(".")
            tensor = getattr(self.get_submodule(place), last)
            hold(self, name, tensor, trained=isinstance(tensor, nn.Parameter))

{forward}

def load(weights: str | Path | None = None) -> Model:
    """Return the network with its weights, in evaluation mode."""
    model = Model()
    held = load_file(weights or Path(__file__).with_suffix(".safetensors"))
    model.load_state_dict({{**held, **{{name: held[original] for name, original in TIED.items()}}}})
    return model.eval()
'''
_IMPORTS: Final = (
    "from pathlib import Path",
    "import numpy",
    "import torch",
    "from safetensors.torch import load_file",
    "from torch import nn",
)


def write_module(module: GraphModule, path: str | os.PathLike[str]) -> None:
    """Write a module as `path`, which ends in `.py`, and its weights as a `.safetensors` file beside it.

    The source stands alone: it holds the functions that it calls. `load()` in it returns the module. Both files are
    written under temporary names first. Raises `UsageError` for another suffix or a folder that is not there.
    """
    from safetensors.torch import save_file

    target = Path(path)
    if target.suffix != ".py" or not target.parent.is_dir():
        raise UsageError("is not a .py file in a folder that exists", where=str(path), remedy="name one, like model.py")
    weights = target.with_suffix(".safetensors")
    tensors, tied = _tensors(module)
    with temporary(target) as new, temporary(weights) as new_weights:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new_weights)
        new.write_text(_text(module, tensors, tied), encoding="utf-8")
        new_weights.replace(weights)
        new.replace(target)


def _tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every tensor once, and the other names of those that are tied."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        original = first.setdefault(id(tensor), name)
        if original == name:
            tensors[name] = tensor.detach() if not isinstance(tensor, nn.Parameter) else tensor
        else:
            tied[name] = original
    return tensors, tied


def _text(module: GraphModule, tensors: dict[str, Tensor], tied: dict[str, str]) -> str:
    imports, definitions = bundle({**module.functions, "Parameters": Parameters, "hold": hold})
    rows = sorted({*imports.splitlines(), *_IMPORTS})
    return _HEAD.format(
        imports="\n".join(rows),
        definitions=definitions,
        tensors="\n".join(f"{INDENT}{row}" for row in _rows(tensors)),
        tied=", ".join(f"{name!r}: {original!r}" for name, original in tied.items()),
        arguments=", ".join(module.inputs) or "nothing",
        forward="".join(f"{INDENT}{row}\n" for row in module.code.splitlines()),
    )


def _rows(tensors: dict[str, Tensor]) -> Iterator[str]:
    for name, tensor in tensors.items():
        yield f"({name!r}, {tuple(tensor.shape)}, {tensor.dtype}, {isinstance(tensor, nn.Parameter)}),"
