"""Three small convolutional networks with BatchNorm to prune: residual, plain, depthwise-separable.

Images `[n, 1, h, w]` in, logits `[n, classes]` out. `stride` is the first convolution's: 2 for larger images.
"""

from torch import Tensor, nn

from benchmarks.recovery_models import Residual


class Pooled(nn.Module):
    """Features, their mean over the image, and one linear layer on it."""

    def __init__(self, width: int, classes: int, *features: nn.Module) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(*features), nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean((2, 3)))


def convolved(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, BatchNorm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A depthwise 3x3 convolution, then a 1x1 one, as in MobileNet."""
    return nn.Sequential(convolved(inputs, inputs, 3, stride, inputs), convolved(inputs, outputs, 1))


def residual(classes: int, stride: int = 1) -> nn.Module:
    """Three residual blocks, as in ResNet."""
    blocks = Residual(32, 32), Residual(32, 64, 2), Residual(64, 64)
    return Pooled(64, classes, convolved(1, 32, 3, stride), *blocks)


def plain(classes: int, stride: int = 1) -> nn.Module:
    """Five 3x3 convolutions, as in VGG."""
    layers = convolved(32, 32), convolved(32, 64, 3, 2), convolved(64, 64), convolved(64, 64)
    return Pooled(64, classes, convolved(1, 32, 3, stride), *layers)


def depthwise(classes: int, stride: int = 1) -> nn.Module:
    """Four depthwise-separable convolutions, as in MobileNet."""
    layers = separable(32, 64), separable(64, 64, 2), separable(64, 128), separable(128, 128)
    return Pooled(128, classes, convolved(1, 32, 3, stride), *layers)
