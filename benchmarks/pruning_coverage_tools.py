"""What `benchmarks.pruning_coverage` has each tool do to a network, and one check of both results.

The check knows nothing of either tool but which places of which parameter were kept: a copy of the original, with all
other places zeroed, must answer what the pruned network answers.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bevel
from benchmarks.architectures import Architecture
from benchmarks.torch_round_trip import apart, results
from bevel.backends.onnxruntime import Level, Session
from bevel.backends.torch import GraphModule

RATIO = 0.5
EQUAL = 1e-3
Kept = Mapping[str, Mapping[int, Any]]
"""Of each parameter, by name and axis, the places that were kept."""


@dataclass
class Row:
    """What one tool made of one network; times in seconds.

    `before` is the export (Bevel) or the tracing (Torch-Pruning), `seconds` analysis and pruning without it, `write`
    making the pruned weights (Torch-Pruning does it as it prunes), `check` the verification that the tool does itself.
    `error` is that of the check here, relative to the largest output.
    """

    network: str
    tool: str
    runs: bool = False
    equal: bool = False
    error: float | None = None
    removed: float | None = None
    before: float | None = None
    seconds: float | None = None
    write: float | None = None
    check: float | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


def built(architecture: Architecture) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a network with random weights, none of them neutral, and its inputs."""
    torch.manual_seed(0)
    with quick_initialisation():
        module = architecture.build().eval()
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            enliven(name, tensor)
    return module, architecture.feed()


def enliven(name: str, tensor: Tensor) -> None:
    """Move a parameter off its neutral value, so that nothing it does is lost in rounding.

    Matrices and kernels pass on at least the variance they get: drawn smaller, as transformers are, attention is so
    even that heads could be exchanged without a trace.
    """
    if not tensor.is_floating_point():
        return
    if name.endswith("running_var"):
        tensor.uniform_(0.5, 1.5)
    elif tensor.ndim < 2 or not tensor.any():
        tensor.add_(torch.randn_like(tensor) * 0.05)
    else:
        wanted = (tensor[0].numel()) ** -0.5
        tensor.mul_(max(wanted / max(tensor.std().item(), 1e-6), 1))


class quick_initialisation:
    """Draw truncated normals as plain ones: the exact way takes longer than all else for a large network."""

    def __enter__(self) -> None:
        self.before = nn.init.trunc_normal_
        nn.init.trunc_normal_ = lambda tensor, mean=0.0, std=1.0, *_, **__: nn.init.normal_(tensor, mean, std)

    def __exit__(self, *_: object) -> None:
        nn.init.trunc_normal_ = self.before


def with_bevel(row: Row, architecture: Architecture, exports: Path | None) -> None:
    """Export, prune, and check twice: as Bevel does, in ONNX Runtime, and here, in torch."""
    module, feed = built(architecture)
    model, row.before = exported(module, feed, None if exports is None else exports / row.network)
    arrays = [{value.name: array for value, array in zip(model.graph.inputs, inputs_of(feed), strict=True)}]
    (step,) = report = bevel.optimize(model, f"prune-channels{{ratio={RATIO}}}", calibration=arrays)
    start = time.perf_counter()
    for value in model.graph.initializers.values():
        value.const_value.numpy()
    row.seconds, row.write, row.check = step.seconds, time.perf_counter() - start, step.verify_seconds
    row.runs = True
    row.removed = 1 - report.after.parameters / report.before.parameters
    row.notes = step.notes
    with Session(model, level=Level.AS_WRITTEN) as session:
        found = [torch.from_numpy(np.asarray(array)) for array in session.run(arrays[0]).values()]
    judge(row, found, module, feed, kept_by_bevel(model), {}, lambda: bevel.to_torch(model, verify=False).eval())


def exported(module: nn.Module, feed: Mapping[str, Tensor], folder: Path | None) -> tuple[Any, float]:
    """Return the graph of a module, and how many seconds its export took, now or when it was put into the folder."""
    known = set() if folder is None else set(folder.glob("*.onnx"))
    start = time.perf_counter()
    model = bevel.load(module, feed, cache=folder)
    seconds = time.perf_counter() - start
    if folder is None:
        return model, seconds
    note = folder / "seconds"
    if set(folder.glob("*.onnx")) != known or not note.exists():
        note.write_text(f"{seconds:.3f}\n")
    return model, float(note.read_text())


def inputs_of(feed: Mapping[str, Tensor]) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in feed.values()]


def kept_by_bevel(model: Any) -> Kept:
    """Read a plan."""
    return {
        name: {axis: cut.kept for axis, cut in tensor.cuts.items()}
        for tensor in bevel.plan(model).changed
        for name in tensor.names
    }


def with_torch_pruning(row: Row, architecture: Architecture, *, hints: bool) -> None:
    """Prune with Torch-Pruning's local magnitude pruning, everything but the layers that make the outputs."""
    import torch_pruning as tp

    module, feed = built(architecture)
    original = copy.deepcopy(module)
    last = output_layers(module, feed)
    options = generic_hints(module) if hints else {}
    tracing = Stopwatch(tp.dependency.DependencyGraph, "_trace")
    with recorded(tp.pruner.function.BasePruningFunc), tracing:
        start = time.perf_counter()
        pruner = tp.pruner.BasePruner(
            module,
            dict(feed) if list(feed) != ["x"] else feed["x"],
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=RATIO,
            ignored_layers=last,
            **options,
        )
        pruner.step()
        row.seconds = time.perf_counter() - start - tracing.seconds
    row.before = tracing.seconds
    with torch.no_grad():
        found = results(module(**feed))
    row.runs = True
    row.removed = 1 - count(module) / count(original)
    kept = {name: tensor.kept for name, tensor in module.named_parameters() if hasattr(tensor, "kept")}
    judge(row, found, original, feed, kept, norms(module, kept), lambda: module)


class Stopwatch:
    """Adds up how long a method takes."""

    def __init__(self, owner: type, name: str) -> None:
        self.owner, self.name, self.method, self.seconds = owner, name, getattr(owner, name), 0.0

    def __enter__(self) -> None:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return self.method(*args, **options)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(self.owner, self.name, timed)

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.name, self.method)


class recorded:
    """Note on every parameter that Torch-Pruning cuts which places of the original it kept, by axis."""

    def __init__(self, owner: type) -> None:
        self.owner, self.method = owner, owner._prune_parameter_and_grad  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        def cut(pruner: Any, weight: Tensor, places: Any, axis: int) -> Tensor:
            small: Tensor = self.method(pruner, weight, list(places), axis)
            axis %= weight.ndim
            before = getattr(weight, "kept", {})
            known = before.get(axis, torch.arange(weight.shape[axis]))
            small.kept = {**before, axis: known[torch.as_tensor(list(places))]}  # type: ignore[attr-defined]
            return small

        self.owner._prune_parameter_and_grad = cut  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        self.owner._prune_parameter_and_grad = self.method  # type: ignore[attr-defined]


def output_layers(module: nn.Module, feed: Mapping[str, Tensor]) -> list[nn.Module]:
    """Return the layers that give out the outputs: by identity of the tensor, or else the last of an output's width."""
    called: list[tuple[nn.Module, Tensor]] = []
    layers = [part for part in module.modules() if not list(part.children()) and list(part.parameters(recurse=False))]

    def note(part: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            called.append((part, output))

    hooks = [part.register_forward_hook(note) for part in layers]
    with torch.no_grad():
        outputs = results(module(**feed))
    for hook in hooks:
        hook.remove()
    return [layer for output in outputs if (layer := maker(output, called)) is not None]


def maker(output: Tensor, called: list[tuple[nn.Module, Tensor]]) -> nn.Module | None:
    """Return the layer that made an output."""
    same = [part for part, tensor in called if tensor is output]
    widths = set(output.shape[1:])
    alike = [part for part, tensor in called if tensor.ndim > 1 and {tensor.shape[1], tensor.shape[-1]} & widths]
    return (same or alike or [None])[-1]


HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
PROJECTIONS = ("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value", "q_lin", "k_lin", "v_lin", "q", "k", "v")


def generic_hints(module: nn.Module) -> dict[str, Any]:
    """Tell how many heads the projections of attention have, wherever an attribute says so."""
    heads: dict[nn.Module, int] = {}
    config = getattr(module, "config", None)
    for part in module.modules():
        owner = next((each for each in (part, config) for name in HEADS if hasattr(each, name)), None)
        number = next((getattr(owner, name) for name in HEADS if hasattr(owner, name)), None)
        for name, child in part.named_children():
            if name in PROJECTIONS and isinstance(child, nn.Linear) and isinstance(number, int):
                heads[child] = number
    return {"num_heads": heads, "prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": RATIO}


def count(module: nn.Module) -> int:
    """Count the parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def norms(module: nn.Module, kept: Kept) -> dict[str, nn.Module]:
    """Return the normalisations of which something was cut, though their statistics run over it."""
    found = {}
    for name, part in module.named_modules():
        told = type(part).__name__
        if f"{name}.weight" in kept and ("RMSNorm" in told or "LayerNorm" in told or isinstance(part, nn.GroupNorm)):
            found[name] = part
    return found


def judge(
    row: Row,
    found: list[Tensor],
    original: nn.Module,
    feed: Mapping[str, Tensor],
    kept: Kept,
    cut: dict[str, nn.Module],
    again: Callable[[], nn.Module],
) -> None:
    """Zero in `original` what was not kept, and compare; `original` is of no use afterwards.

    The normalisations in `cut` take their statistics over the kept places only, as they do in the pruned network. Where
    the two differ, both are run in double precision, in which `again` gives the pruned network: some networks with
    random weights multiply roundings until nothing else is left.
    """
    zero(original, kept)
    for name, small in cut.items():
        part = original.get_submodule(name)
        part.forward = over(part, small, torch.as_tensor(kept[f"{name}.weight"][0]))  # type: ignore[assignment]
    row.error = distance(found, answers(original, feed))
    if not row.error <= EQUAL and kept:
        single, double = row.error, {name: wide(tensor) for name, tensor in feed.items()}
        row.error = distance(answers(again().double(), double), answers(original.double(), double))
        row.notes = (*row.notes, f"compared in double precision; in single the error is {single:.1g}")
    row.equal = row.error <= EQUAL and bool(kept)
    if not kept:
        row.reason = "; ".join(("nothing removed", *(note for note in row.notes if "statistics" in note)))[:240]
    if cut:
        row.notes = (*row.notes, f"{len(cut)} normalisations with other statistics")
    if not row.equal:
        row.reason = row.reason or f"other outputs: error {row.error:.2g}"


def answers(module: nn.Module, feed: Mapping[str, Tensor]) -> list[Tensor]:
    """Run a module on inputs given in its own order."""
    with torch.no_grad():
        return results(module(*feed.values()) if isinstance(module, GraphModule) else module(**feed))


def wide(tensor: Tensor) -> Tensor:
    """Return floats in double precision, and all else as it is."""
    return tensor.double() if tensor.is_floating_point() else tensor


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest error of any output."""
    if len(found) != len(expected):
        return float("inf")
    return max((apart(a, b) for a, b in zip(found, expected, strict=True)), default=float("inf"))


def over(part: nn.Module, small: nn.Module, places: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the forward of a normalisation of which only some places are there."""

    def forward(x: Tensor) -> Tensor:
        axis = 1 if isinstance(part, nn.GroupNorm) or "2d" in type(part).__name__ else -1
        y = torch.zeros_like(x)
        y.index_copy_(axis, places, small(x.index_select(axis, places)))
        return y

    return forward


def zero(module: nn.Module, kept: Kept) -> None:
    """Zero every place of a parameter that was not kept."""
    with torch.no_grad():
        for name, tensor in places(module):
            for axis, stays in kept.get(name, {}).items():
                gone = torch.ones(tensor.shape[axis], dtype=torch.bool)
                gone[torch.as_tensor(stays)] = False
                tensor.index_fill_(axis, gone.nonzero().flatten(), 0)


def places(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Give the tensors that can be zeroed: a running variance is divided by, and integers are places."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not name.endswith(("running_var", "running_mean")):
            yield name, tensor
