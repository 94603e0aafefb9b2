"""Known ways around failures of the exporter: settings of a module that are changed while it is exported."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import onnx_ir as ir
from torch import nn
from torch.export import ExportedProgram

from bevel.errors import UsageError
from bevel.frontends.torch.arguments import Arguments
from bevel.frontends.torch.exporting import ExportFailed, exported, fault_of
from bevel.frontends.torch.state import Source

logger = logging.getLogger(__name__)

NOTES: Final = "bevel.export"
"""Key in the model's metadata: what was changed so that it could be exported."""


@dataclass(frozen=True)
class Remedy:
    """A setting under which a module can be exported: of its parts, or of the configurations that those hold.

    It is tried after failures whose reason contains `sign`. What the module computes is the same.
    """

    note: str
    setting: str
    value: Any
    sign: str = ""

    def places(self, module: nn.Module) -> list[Any]:
        """Return the parts and configurations of a module that have another value."""
        found = [place for place in (*module.modules(), *configurations(module)) if self.setting in vars(place)]
        return [place for place in found if vars(place)[self.setting] not in (None, self.value)]

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Change the setting, and put every place back as it was."""
        before = [(place, vars(place)[self.setting]) for place in self.places(module)]
        for place, _ in before:
            setattr(place, self.setting, self.value)
        try:
            yield
        finally:
            for place, value in before:
                setattr(place, self.setting, value)


WITHOUT_CACHE: Final = Remedy("use_cache=False", "use_cache", False)
"""Applied from the start: no graph can give out the Python object that holds the cache."""

AFTER_FAILURE: Final = (
    # The exporter has no form of the products over ragged groups of rows; this gathers each token's experts instead.
    Remedy('experts_implementation="batched_mm"', "_experts_implementation_internal", "batched_mm", "grouped_mm"),
    Remedy('attn_implementation="eager"', "_attn_implementation_internal", "eager"),
    # timm's name for the same choice: the strides of torch's fused attention are not those of its decomposition.
    Remedy("fused_attn=False", "fused_attn", False),
)


def exported_somehow(source: Source, arguments: Arguments) -> tuple[ir.Model, ExportedProgram]:
    """Export; where that fails and a remedy is known, try again with it. Say in the model's metadata what was changed.

    The last failure is raised: its reason is the one that no remedy took away.
    """
    if isinstance(source, ExportedProgram):
        return exported(source, arguments)
    notes: list[str] = []
    with ExitStack() as settings:
        if WITHOUT_CACHE.setting not in arguments.kwargs and WITHOUT_CACHE.places(source):
            settings.enter_context(WITHOUT_CACHE.applied(source))
            notes.append(WITHOUT_CACHE.note)
        while True:
            try:
                model, program = exported(source, arguments)
            except ExportFailed as failure:
                remedy = remedy_for(failure, source)
                if remedy is None:
                    check_runs(source, arguments)
                    raise
                settings.enter_context(remedy.applied(source))
                notes.append(remedy.note)
                logger.info("%s; trying again with %s", failure.what, remedy.note)
                continue
            break
    report(model, program, source, notes)
    return model, program


def remedy_for(failure: ExportFailed, module: nn.Module) -> Remedy | None:
    """Return a remedy for a failure that is not applied yet, if there is one."""
    return next((remedy for remedy in AFTER_FAILURE if remedy.sign in failure.what and remedy.places(module)), None)


def check_runs(module: nn.Module, arguments: Arguments) -> None:
    """Refuse example inputs on which the module itself fails: that is not the exporter's fault."""
    fault = fault_of(module, arguments)
    if fault:
        raise UsageError(f"the module fails on example_inputs: {fault}", remedy="try module(*args, **kwargs) first")


def report(model: ir.Model, program: ExportedProgram, module: nn.Module, notes: list[str]) -> None:
    """Note what was changed for the export in the model, and warn of what the graph does not do."""
    kept = sorted(program.graph_signature.buffers_to_mutate.values())
    if kept:
        notes = [*notes, f"no updates of the buffers {', '.join(kept)}"]
        warnings.warn(
            f"{type(module).__name__} updates buffers ({', '.join(kept)}) as it runs; the graph takes them as they are",
            stacklevel=2,
        )
    if notes:
        model.metadata_props[NOTES] = "; ".join(notes)
        logger.info("%s was exported with %s", type(module).__name__, model.metadata_props[NOTES])


def configurations(module: nn.Module) -> list[Any]:
    """Return the configurations that a module and its parts hold, and those inside them, each once."""
    found: dict[int, Any] = {}
    waiting = [part.__dict__["config"] for part in module.modules() if "config" in part.__dict__]
    while waiting:
        config = waiting.pop()
        if id(config) not in found and hasattr(config, "__dict__"):
            found[id(config)] = config
            waiting.extend(value for value in vars(config).values() if isinstance(value, base(config)))
    return list(found.values())


def base(config: Any) -> type:
    """Return the class under `object` that a configuration's class descends from: what its own parts are as well."""
    return type(config).__mro__[-2]
