"""Caches of keys and values in codes of a few bits, as ONNX Runtime's attention keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

NIBBLE: Final = 16
MIDDLE: Final = 8
"""The code of zero, of 4 bits."""


@dataclass(frozen=True)
class Grid:
    """Codes of 8 bits, signed, or of 4, two to a byte with the even entry in the low half; a scale that broadcasts."""

    scale: Tensor
    bits: int

    def encode(self, x: Tensor) -> Tensor:
        """Return the nearest codes."""
        most = (1 << (self.bits - 1)) - 1
        codes = torch.round(x.float() / self.scale).clamp(-most - 1, most).to(torch.int8)
        if self.bits == 8:
            return codes
        even, odd = ((codes[..., start::2] + MIDDLE).to(torch.uint8) for start in (0, 1))
        return even + odd * NIBBLE

    def decode(self, codes: Tensor, like: Tensor) -> Tensor:
        """Return what codes stand for, in the type of a tensor."""
        if self.bits == 4:
            halves = torch.stack((codes % NIBBLE, codes // NIBBLE), -1).flatten(-2)
            codes = halves.to(torch.int8) - MIDDLE
        return (codes.to(self.scale.dtype) * self.scale).to(like.dtype)
