"""Bevel reshapes trained networks, and proves that the result is right.

    import bevel

    model = bevel.load("model.onnx")
    for group in bevel.groups(model):
        print(group)
    print(bevel.optimize(model, "simplify,prune-channels{ratio=0.5}"))
    bevel.save(model, "small.onnx")

Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bevel.backends.files import save
    from bevel.backends.torch.experts import ExpertWeightAveraging as ExpertWeightAveraging
    from bevel.backends.torch.experts import stack_experts as stack_experts
    from bevel.backends.torch.experts import upcycle as upcycle
    from bevel.backends.torch.finetuning import finetune as finetune
    from bevel.errors import BevelError
    from bevel.frontends import load
    from bevel.ir.coupling import Coupling, rule
    from bevel.ir.groups import groups
    from bevel.ir.plan import Plan, plan
    from bevel.merging import merge_delta
    from bevel.modules import apply, to_torch
    from bevel.passes.base import Exact, Lossy, Masked, Pass, Preserving, Promise
    from bevel.passes.pipeline import optimize
    from bevel.passes.verify import verify
    from bevel.selection import select_finetune

__all__ = [
    "BevelError",
    "Coupling",
    "Exact",
    "Lossy",
    "Masked",
    "Pass",
    "Plan",
    "Preserving",
    "Promise",
    "apply",
    "groups",
    "load",
    "merge_delta",
    "optimize",
    "plan",
    "rule",
    "save",
    "select_finetune",
    "to_torch",
    "verify",
]

_HOMES = {
    "BevelError": "bevel.errors",
    "Coupling": "bevel.ir.coupling",
    "ExpertWeightAveraging": "bevel.backends.torch.experts",
    "Plan": "bevel.ir.plan",
    "apply": "bevel.modules",
    "finetune": "bevel.backends.torch.finetuning",
    "groups": "bevel.ir.groups",
    "load": "bevel.frontends",
    "merge_delta": "bevel.merging",
    "optimize": "bevel.passes.pipeline",
    "plan": "bevel.ir.plan",
    "rule": "bevel.ir.coupling",
    "save": "bevel.backends.files",
    "select_finetune": "bevel.selection",
    "stack_experts": "bevel.backends.torch.experts",
    "to_torch": "bevel.modules",
    "upcycle": "bevel.backends.torch.experts",
    "verify": "bevel.passes.verify",
}

# PyTorch is imported for these, so `import *` leaves them out.
_OF_TORCH = [name for name, home in _HOMES.items() if home.startswith("bevel.backends.torch")]


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in _OF_TORCH:
        raise AttributeError(f"module 'bevel' has no attribute {name!r}")
    home = _HOMES.get(name, "bevel.passes.base")
    if home.startswith("bevel.backends.torch"):
        from bevel.modules import backend

        return getattr(backend(home.rpartition(".")[2]), name)
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_OF_TORCH])
