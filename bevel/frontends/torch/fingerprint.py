"""What an export depends on, as one short text: two modules with the same fingerprint have the same graph."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from bevel.frontends.torch.arguments import Arguments
from bevel.frontends.torch.description import Seen, content, named, told
from bevel.frontends.torch.sources import code_behind
from bevel.frontends.torch.state import State, identity, is_trained, names_by_identity

PACKAGES: Final = ("bevel", "torch", "onnxscript", "onnx-ir", "transformers", "timm")
"""What writes the graph, and what may be asked to write it in another way."""

# Of a module's attributes, those that are described elsewhere or do not matter for the graph.
APART: Final = frozenset({"_parameters", "_buffers", "_modules", "training"})


def fingerprint(module: nn.Module, state: State, arguments: Arguments) -> str:
    """Return the digest of a module's structure, attributes and code, of the example inputs' sizes, and of versions.

    Of what is in the `state_dict` only the form counts: the content of parameters does not shape the graph.
    """
    digest = hashlib.sha256()
    for part in described(module, state, arguments):
        digest.update(part.encode(errors="replace") + b"\0")
    return digest.hexdigest()[:32]


def described(module: nn.Module, state: State, arguments: Arguments) -> Iterator[str]:
    """Give all that an export depends on, piece by piece."""
    yield from (f"{name} {installed(name)}" for name in ("python", *PACKAGES))
    yield from (hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(Path(__file__).parent.glob("*.py")))
    yield from (f"{names}" for names in names_by_identity(state).values())
    yield from (f"{name} {form(tensor)} {is_trained(tensor)}" for name, tensor in state.items())
    held = {identity(tensor) for tensor in state.values()}
    seen: Seen = {}
    for name, part in module.named_modules(remove_duplicate=False):
        yield f"{name} {named(type(part))}"
        for key, value in vars(part).items():
            if key not in APART:
                # Hooks are numbered as they are made, in the whole process.
                yield from told(key, list(value.values()) if "hooks" in key and value else value, seen)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if identity(tensor) not in held:
            yield f"{name} {content(tensor)}"
    yield from told("inputs", [sample(arguments.args), sample(dict(arguments.kwargs))], seen)
    yield from told("dynamic_shapes", arguments.dynamic_shapes, seen)
    yield from (f"{axis.place} {axis.name}" for axis in arguments.axes)
    yield from code_behind({kind.__module__ for part in module.modules() for kind in type(part).__mro__})


def installed(name: str) -> str:
    """Return the version of a package, or of Python."""
    if name == "python":
        return sys.version
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def form(tensor: Tensor) -> str:
    """Describe a tensor without its content."""
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}"


def sample(value: Any) -> Any:
    """Replace the tensors among example inputs by their forms: their content is not exported."""
    if isinstance(value, Tensor):
        return form(value)
    if isinstance(value, Mapping):
        return {key: sample(part) for key, part in value.items()}
    return [sample(part) for part in value] if isinstance(value, list | tuple) else value
