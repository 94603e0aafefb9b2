"""A small selective state space model in the manner of Mamba: gates, a causal depthwise convolution, and a scan.

It takes token numbers `[batch, sequence]`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.language import VOCABULARY, RMSNorm

WIDTH, INNER, STATE, RANK, TAPS, ROUNDS = 40, 80, 8, 6, 4, 4


class Mamba(nn.Module):
    """Pre-norm blocks on a residual stream."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([MambaBlock() for _ in range(layers)])
        self.norm, self.head = RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class MambaBlock(nn.Module):
    """One matrix for input and gate, one for step, B and C; `A` is diagonal, one per channel and state."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = RMSNorm(WIDTH)
        self.in_proj = nn.Linear(WIDTH, 2 * INNER, bias=False)
        self.conv = nn.Conv1d(INNER, INNER, TAPS, padding=TAPS - 1, groups=INNER)
        self.x_proj = nn.Linear(INNER, RANK + 2 * STATE, bias=False)
        self.dt_proj = nn.Linear(RANK, INNER)
        self.A_log = nn.Parameter((torch.rand(INNER, STATE) + 0.5).log())
        self.D = nn.Parameter(torch.ones(INNER))
        self.out_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, stream: Tensor) -> Tensor:
        x, gate = self.in_proj(self.norm(stream)).chunk(2, -1)
        x = functional.silu(self.conv(x.transpose(1, 2))[..., : stream.shape[1]].transpose(1, 2))
        step, write, read = self.x_proj(x).split([RANK, STATE, STATE], -1)
        step = functional.softplus(self.dt_proj(step))
        decay = torch.exp(step[..., None] * -torch.exp(self.A_log))
        states = scanned(decay, (step * x)[..., None] * write[:, :, None])
        y = (states * read[:, :, None]).sum(-1) + x * self.D
        return stream + self.out_proj(y * functional.silu(gate))


def scanned(decay: Tensor, change: Tensor) -> Tensor:
    """Return `h[t] = decay[t] * h[t - 1] + change[t]` for all places, `[batch, sequence, inner, state]`.

    In rounds, each of which doubles how many places back a state has summed up: so the sequence can have any length up
    to 2**ROUNDS.
    """
    for distance in (2**number for number in range(ROUNDS)):
        change = change + decay * shifted(change, distance)
        decay = decay * shifted(decay, distance)
    return change


def shifted(x: Tensor, distance: int) -> Tensor:
    """Move everything so many places on; zeros come in."""
    return functional.pad(x, (0, 0, 0, 0, distance, 0))[:, : x.shape[1]]
