"""Losses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.table import lower

_NEVER = -100  # the index that torch ignores unless told otherwise; no class has it


@lower("NegativeLogLikelihoodLoss")
def negative_log_likelihood(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = _NEVER, reduction: str = "mean"
) -> Tensor:
    """Return minus the logarithms of probability of the target classes, weighted by class."""
    return F.nll_loss(x, target.to(torch.int64), weight, ignore_index=ignore_index, reduction=reduction)


@lower("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(
    scores: Tensor, labels: Tensor, weight: Tensor | None = None, *, ignore_index: int = _NEVER, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    """Return the loss of class scores along axis 1, and the logarithms of their softmax."""
    logs = torch.log_softmax(scores, 1)
    return negative_log_likelihood(logs, labels, weight, ignore_index=ignore_index, reduction=reduction), logs
