"""What fine-tuning added to a base, thinned out, and several of them merged: what takes more than one model."""

import onnx_ir as ir

from bevel.ir.lineage import Lineage, set_lineage
from bevel.passes.calibration import Calibration, Source
from bevel.passes.merge_delta import MergeDelta
from bevel.passes.pipeline import Hooks, adopt, optimize
from bevel.report import Report


def merge_delta(
    model: ir.Model,
    base: ir.Model,
    *siblings: ir.Model,
    step: MergeDelta | None = None,
    calibration: Source | Calibration | None = None,
    verify: bool = True,
    seed: int = 0,
    max_error: float | None = None,
    hooks: Hooks | None = None,
) -> Report:
    """Drop most of what fine-tuning added to `base`, in place, and add what `siblings` of the model have learnt.

    `model` and `siblings` were tuned from `base` and have its architecture. `step` has the options (`MergeDelta`, which
    says what happens); the rest is as in `optimize`. Neither `base` nor a sibling changes, but the result's weights are
    computed from theirs when it is saved or run. On any error the model stays as it was.
    """
    working = model.clone()
    set_lineage(working, Lineage(base.clone(), tuple(sibling.clone() for sibling in siblings)))
    report = optimize(
        working,
        step or MergeDelta(),
        calibration=calibration,
        verify=verify,
        seed=seed,
        max_error=max_error,
        hooks=hooks,
    )
    adopt(model, working)
    return report
