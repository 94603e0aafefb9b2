"""Structural edits on a user's own module: what a plan takes of its tensors, and every attribute that repeats a size.

`bevel.apply` is the way in; it makes up inputs where the caller has none.
"""

from bevel.backends.torch.surgery.attention import NarrowMultiheadAttention
from bevel.backends.torch.surgery.operation import AttributeChange, Surgery, operate

__all__ = ["AttributeChange", "NarrowMultiheadAttention", "Surgery", "operate"]
