"""PyTorch modules out: any ONNX graph as a trainable `nn.Module`."""

from bevel.backends.torch.conversion import to_torch
from bevel.backends.torch.module import GraphModule
from bevel.backends.torch.running import KERNELS_RTOL, answer, answer_exactly
from bevel.backends.torch.table import lower, write

__all__ = ["KERNELS_RTOL", "GraphModule", "answer", "answer_exactly", "lower", "to_torch", "write"]
