"""Recurrent layers: torch's fused kernels where they compute the same, a loop over time otherwise.

Torch's kernels know the usual activations only, no clipping, no peepholes and no lengths, and a GRU whose reset gate
comes after the linear map. Lengths are added around them: what comes after a sequence's end changes nothing before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.activations import Activation, activations_of
from bevel.backends.torch.table import lower

States: TypeAlias = tuple[Tensor, ...]
Step: TypeAlias = Callable[[Tensor, States], States]

_SIMPLE: Final[Mapping[str, Callable[..., States]]] = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}


@lower("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = ("Tanh", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
    outputs: int = 2,
) -> tuple[Tensor, ...]:
    """Run a simple recurrent layer."""
    functions = activations_of(activations, activation_alpha, activation_beta, clip)
    x, initial = _by_time(x, layout), _initial(x, r, [initial_h], layout)

    def one(line: Tensor, at: int, states: States) -> tuple[Tensor, States]:
        kernel = _SIMPLE.get(activations[at].lower())
        if kernel is not None and clip is None:
            return _fused(kernel, line, w[at], r[at], None if b is None else b[at], states, lengths)

        def step(gates: Tensor, before: States) -> States:
            return (functions[at](gates + F.linear(before[0], r[at])),)

        return _loop(step, F.linear(line, w[at], _sum(b, at)), states, lengths)

    return _both(one, x, initial, lengths, direction, layout)[:outputs]


@lower("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 0,
    outputs: int = 2,
) -> tuple[Tensor, ...]:
    """Run a layer of gated recurrent units, whose gates are update, reset and hidden."""
    names = activations or ("Sigmoid", "Tanh") * w.shape[0]
    functions = activations_of(names, activation_alpha, activation_beta, clip)
    usual = [name.lower() for name in names] == ["sigmoid", "tanh"] * w.shape[0] and clip is None
    x, initial = _by_time(x, layout), _initial(x, r, [initial_h], layout)

    def one(line: Tensor, at: int, states: States) -> tuple[Tensor, States]:
        if usual and linear_before_reset:
            w_rzn, r_rzn = (_gates(part, 3, (1, 0, 2)) for part in (w[at], r[at]))
            bias = None if b is None else _gates(b[at], 6, (1, 0, 2, 4, 3, 5))
            return _fused(torch.gru, line, w_rzn, r_rzn, bias, states, lengths)
        step, bias = _gru_step(r[at], b, at, functions[2 * at : 2 * at + 2], bool(linear_before_reset))
        return _loop(step, F.linear(line, w[at], bias), states, lengths)

    return _both(one, x, initial, lengths, direction, layout)[:outputs]


def _gru_step(
    r: Tensor, b: Tensor | None, at: int, functions: Sequence[Activation], linear_first: bool
) -> tuple[Step, Tensor | None]:
    """Return one step in time, and the biases that the inputs get beforehand."""
    f, g = functions
    hidden = r.shape[1]
    r_gates, r_hidden = r[: 2 * hidden], r[2 * hidden :]
    bias, last = _sum(b, at), None
    if linear_first and b is not None:
        of_input, last = b[at, : 3 * hidden], b[at, 5 * hidden :]
        bias = of_input + F.pad(b[at, 3 * hidden : 5 * hidden], [0, hidden])

    def step(gates: Tensor, before: States) -> States:
        (h,) = before
        z, reset = f(gates[..., : 2 * hidden] + F.linear(h, r_gates)).chunk(2, -1)
        inner = reset * F.linear(h, r_hidden, last) if linear_first else F.linear(reset * h, r_hidden)
        new = g(gates[..., 2 * hidden :] + inner)
        return ((1 - z) * new + z * h,)

    return step, bias


@lower("LSTM")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int = 0,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
    outputs: int = 3,
) -> tuple[Tensor, ...]:
    """Run a layer of long short-term memory, whose gates are input, output, forget and cell."""
    names = activations or ("Sigmoid", "Tanh", "Tanh") * w.shape[0]
    functions = activations_of(names, activation_alpha, activation_beta, clip)
    # ONNX Runtime clips what goes into the gates and the cell, not what comes out of it.
    functions[2::3] = activations_of(names, activation_alpha, activation_beta, None)[2::3]
    usual = [name.lower() for name in names] == ["sigmoid", "tanh", "tanh"] * w.shape[0] and clip is None
    # The kernel tells the cells of the last position only, which is beyond the end of a shorter sequence.
    fused = usual and p is None and not input_forget and (lengths is None or outputs < 3)
    x, initial = _by_time(x, layout), _initial(x, r, [initial_h, initial_c], layout)

    def one(line: Tensor, at: int, states: States) -> tuple[Tensor, States]:
        if fused:
            w_ifco, r_ifco = (_gates(part, 4, (0, 2, 3, 1)) for part in (w[at], r[at]))
            bias = None if b is None else _gates(b[at], 8, (0, 2, 3, 1, 4, 6, 7, 5))
            return _fused(torch.lstm, line, w_ifco, r_ifco, bias, states, lengths)
        peepholes = None if p is None else p[at]
        step = _lstm_step(r[at], peepholes, functions[3 * at : 3 * at + 3], bool(input_forget))
        return _loop(step, F.linear(line, w[at], _sum(b, at)), states, lengths)

    return _both(one, x, initial, lengths, direction, layout)[:outputs]


def _lstm_step(r: Tensor, p: Tensor | None, functions: Sequence[Activation], coupled: bool) -> Step:
    f, g, h = functions
    p_in, p_out, p_forget = r.new_zeros(3, 1).unbind() if p is None else p.chunk(3)

    def step(gates: Tensor, before: States) -> States:
        hidden, cell = before
        put, out, forget, new = (gates + F.linear(hidden, r)).chunk(4, -1)
        put = f(put + p_in * cell)
        kept = 1 - put if coupled else f(forget + p_forget * cell)
        cell = kept * cell + put * g(new)
        return f(out + p_out * cell) * h(cell), cell

    return step


def _by_time(x: Tensor, layout: int) -> Tensor:
    return x.transpose(0, 1) if layout else x


def _initial(x: Tensor, r: Tensor, given: Sequence[Tensor | None], layout: int) -> list[Tensor]:
    """Return the first states: direction, batch, hidden."""
    batch = x.shape[0 if layout else 1]
    zeros = x.new_zeros(r.shape[0], batch, r.shape[2])
    return [zeros if state is None else _by_time(state, layout) for state in given]


def _both(
    one: Callable[[Tensor, int, States], tuple[Tensor, States]],
    x: Tensor,
    initial: Sequence[Tensor],
    lengths: Tensor | None,
    direction: str,
    layout: int,
) -> tuple[Tensor, ...]:
    """Run `one` direction or two, and join what they return."""
    lines: list[Tensor] = []
    finals: list[States] = []
    for at in range(initial[0].shape[0]):
        backward = direction == "reverse" or at == 1
        line, last = one(_reverse(x, lengths) if backward else x, at, tuple(state[at] for state in initial))
        lines.append(_reverse(line, lengths) if backward else line)
        finals.append(last)
    states = [torch.stack(parts) for parts in zip(*finals, strict=True)]
    y = torch.stack(lines, 1)
    if layout:
        return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)
    return y, *states


def _reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse sequences in time, each up to its own end."""
    if lengths is None:
        return x.flip(0)
    time = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    places = torch.where(time < lengths, lengths - 1 - time, time)
    return x.gather(0, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _fused(
    kernel: Callable[..., States],
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    states: States,
    lengths: Tensor | None,
) -> tuple[Tensor, States]:
    """Run torch's kernel in one direction. Without dropout, its training mode only keeps what gradients need."""
    weights = [w, r] if b is None else [w, r, *b.chunk(2)]
    first = tuple(state.unsqueeze(0) for state in states)
    start = first if len(states) > 1 else first[0]
    y, *last = kernel(x, start, weights, b is not None, 1, 0.0, torch.is_grad_enabled(), False, False)
    finals = tuple(state.squeeze(0) for state in last)
    if lengths is None:
        return y, finals
    y, h = _up_to(y, states[0], lengths)
    return y, (h, *finals[1:])


def _up_to(y: Tensor, first: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return zeros after the ends of sequences, and the states at them."""
    time = torch.arange(y.shape[0], device=y.device).unsqueeze(1)
    y = torch.where((time < lengths).unsqueeze(2), y, 0.0)
    ends = (lengths.to(torch.int64) - 1).clamp(min=0).view(1, -1, 1).expand(1, -1, y.shape[2])
    return y, torch.where((lengths > 0).unsqueeze(1), y.gather(0, ends).squeeze(0), first)


def _loop(step: Step, gates: Tensor, states: States, lengths: Tensor | None) -> tuple[Tensor, States]:
    """Run one direction step by step; the states of a sequence stay as they are after its end."""
    line: list[Tensor] = []
    for time, entry in enumerate(gates.unbind(0)):
        new = step(entry, states)
        if lengths is None:
            states = new
            line.append(new[0])
            continue
        runs = (lengths > time).unsqueeze(1)
        states = tuple(torch.where(runs, after, before) for after, before in zip(new, states, strict=True))
        line.append(torch.where(runs, new[0], 0.0))
    return torch.stack(line), states


def _gates(x: Tensor, count: int, order: Sequence[int]) -> Tensor:
    """Put the blocks of gates in another order."""
    blocks = x.chunk(count)
    return torch.cat([blocks[place] for place in order])


def _sum(b: Tensor | None, at: int) -> Tensor | None:
    if b is None:
        return None
    of_input, of_state = b[at].chunk(2)
    return of_input + of_state
