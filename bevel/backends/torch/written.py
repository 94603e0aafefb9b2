"""A graph module as files: Python source that needs torch and safetensors only, and its weights."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

from torch import Tensor, nn

from bevel.backends.torch.bundle import bundle
from bevel.backends.torch.lines import INDENT
from bevel.backends.torch.parameters import Parameters, hold
from bevel.writing import module_files, temporary, written

if TYPE_CHECKING:
    from bevel.backends.torch.module import GraphModule

_HEAD: Final = '''"""A neural network, written by Bevel. `load()` reads its weights from the file beside this one."""

from __future__ import annotations

{imports}


{definitions}


# Every tensor: its name, shape and type, whether it is trained, and whether it is part of the `state_dict`.
TENSORS = (
{tensors}
)
# Names under which a tensor is held again, by the name it has above.
TIED = {{{tied}}}


class Model(Parameters):
    """The network; `forward` takes {arguments}."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape, kind, trained, persistent in TENSORS:
            hold(self, name, torch.empty(shape, dtype=kind), trained=trained, persistent=persistent)
        for name, original in TIED.items():
            tensor = self.tensor(original)
            hold(self, name, tensor, trained=isinstance(tensor, nn.Parameter))

    def tensor(self, name: str) -> Tensor:
        place, _, last = name.rpartition(".")
        return getattr(self.get_submodule(place), last)

{forward}

def load(weights: str | Path | None = None) -> Model:
    """Return the network with its weights, in evaluation mode."""
    model = Model()
    held = load_file(weights or Path(__file__).with_suffix(".safetensors"))
    with torch.no_grad():
        for name, *_ in TENSORS:
            model.tensor(name).copy_(held[name])
    return model.eval()
'''
_IMPORTS: Final = (
    "from pathlib import Path",
    "import numpy",
    "import torch",
    "from safetensors.torch import load_file",
    "from torch import Tensor, nn",
)


def write_module(module: GraphModule, path: str | os.PathLike[str]) -> None:
    """Write a module as `path`, which ends in `.py`, and its weights as a `.safetensors` file beside it.

    The source stands alone: it holds the functions that it calls. `load()` in it returns the module. Both files are
    written under temporary names first. Raises `UsageError` for another suffix or a folder that is not there.
    """
    from safetensors.torch import save_file

    target, weights = module_files(path)
    tensors, tied = _tensors(module)
    with written(target), temporary(target) as new, temporary(weights) as new_weights:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, new_weights)
        new.write_text(_text(module, tensors, tied), encoding="utf-8")
        new_weights.replace(weights)
        new.replace(target)


def _tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every tensor once, and the other names of those that are tied."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    first = {id(tensor): name for name, tensor in tensors.items()}
    again = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return tensors, {name: first[id(tensor)] for name, tensor in again if name not in tensors}


def _text(module: GraphModule, tensors: dict[str, Tensor], tied: dict[str, str]) -> str:
    imports, definitions = bundle({**module.functions, "Parameters": Parameters, "hold": hold})
    rows = sorted({*imports.splitlines(), *_IMPORTS})
    return _HEAD.format(
        imports="\n".join(rows),
        definitions=definitions,
        tensors="\n".join(f"{INDENT}{row}" for row in _rows(tensors, module.state_dict().keys())),
        tied=", ".join(f"{name!r}: {original!r}" for name, original in tied.items()),
        arguments=", ".join(module.inputs) or "nothing",
        forward="".join(f"{INDENT}{row}\n" for row in module.code.splitlines()),
    )


def _rows(tensors: dict[str, Tensor], persistent: Collection[str]) -> Iterator[str]:
    for name, tensor in tensors.items():
        trained = isinstance(tensor, nn.Parameter)
        yield f"({name!r}, {tuple(tensor.shape)}, {tensor.dtype}, {trained}, {name in persistent}),"
