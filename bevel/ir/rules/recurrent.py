"""Recurrent operators: the hidden axis lies once for each gate in the weights."""

from __future__ import annotations

from bevel.ir.coupling import Coupling, Freedom, rule
from bevel.ir.equation import couple
from bevel.ir.rules.fixed import MICROSOFT
from bevel.ir.rules.normalization import STATISTICS
from bevel.ir.site import Site

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}


@rule("LSTM", "GRU", "RNN")
def recurrent(site: Site) -> None:
    """Sum over the input and, through the recurrent weight, over the hidden axis; time and directions are fixed."""
    stacked = f"d ({_times(_gates(site), 'h')})"
    couple(site, _recurrence(site, f"{stacked} i, {stacked} h"))
    site.sums_over(site.axes(2)[2], 2, 2)  # a dropped entry feeds no other through the recurrent weight


@rule("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(site: Site) -> None:
    """State an LSTM with integer weights, transposed; inputs and states are quantized by their extremes."""
    stacked = f"({_times(_gates(site), 'h')})"
    per_column = [f"d {stacked}" if len(site.axes(index)) > 1 else "d" for index in range(8, 12)]
    coupling = _recurrence(site, f"d i {stacked}, d h {stacked}", f", {', '.join(per_column)}", sums="")
    couple(site, coupling)
    site.keep((*site.axes(0), site.axes(2)[1]), Freedom.PERMUTE, STATISTICS)


def _gates(site: Site) -> int:
    return _GATES[site.node.op_type]


def _times(count: int, word: str) -> str:
    return " + ".join([word] * count)


def _recurrence(site: Site, weights: str, scales: str = "", sums: str = "i") -> Coupling:
    """Return the equation of a recurrence; `weights` are those of input and state, `scales` follow all operands."""
    gates = _gates(site)
    batch_first = site.integer("layout")
    x, state, y = ("b s i", "b d h", "b s d h") if batch_first else ("s b i", "d b h", "s d b h")
    states = [state, state] if gates == 4 else [state]
    peepholes = f", d ({_times(3, 'h')})" if gates == 4 else ""
    operands = f"{x}, {weights}, d ({_times(2 * gates, 'h')}), b, {', '.join(states)}{peepholes}{scales}"
    return Coupling(
        f"{operands} -> {', '.join([y, *states])}",
        sums=sums,
        fixed=("s", "d"),
        states={"hidden_size": "h"},
    )
