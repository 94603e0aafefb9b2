"""Small convolutional networks, each with the coupling its family is known for. Images `[batch, 3, 16, 16]` in."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


def unit(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Straight(nn.Sequential):
    """One module after the other, from an argument named as elsewhere here."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)


class Classifier(nn.Module):
    """Features, their mean over space, one linear layer."""

    def __init__(self, width: int, *features: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean((2, 3)))


class Residual(nn.Module):
    """A basic block; `groups` makes its convolutions grouped (ResNeXt)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        last = nn.Conv2d(outputs, outputs, 3, 1, 1, groups=groups, bias=False)
        self.branch = nn.Sequential(unit(inputs, outputs, 3, stride, groups), last, nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.branch(x) + self.shortcut(x))


class Excited(nn.Module):
    """Squeeze and excite: channels scaled by a function of their means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = functional.adaptive_avg_pool2d(x, 1)
        return x * functional.hardsigmoid(self.up(functional.relu(self.down(means))))


class Inverted(nn.Module):
    """MobileNetV3's block: widen, depthwise, excite, narrow, add."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False)
        self.widen = nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(hidden), nn.Hardswish())
        self.excite = Excited(hidden)
        self.narrow = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.excite(self.depthwise(self.widen(x))))


class Dense(nn.Module):
    """DenseNet's block: each layer sees every earlier one, joined."""

    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        sizes = [width + growth * index for index in range(layers)]
        self.layers = nn.ModuleList([self.layer(size, growth) for size in sizes])

    @staticmethod
    def layer(inputs: int, growth: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(layer(torch.cat(seen, 1)))
        return torch.cat(seen, 1)


class Shuffled(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass through, then both halves are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        depthwise = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.branch = nn.Sequential(unit(half, half, 1), depthwise, nn.BatchNorm2d(half), unit(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        joined = torch.cat((left, self.branch(right)), dim=1)
        batch, width, height, breadth = joined.shape
        pairs = joined.view(batch, 2, width // 2, height, breadth).transpose(1, 2)
        return pairs.reshape(batch, width, height, breadth)


class UNet(nn.Module):
    """Down, up by transposed convolution, with the fine features joined again; an image out."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = unit(3, 16), nn.Sequential(nn.MaxPool2d(2), unit(16, 32))
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.join, self.out = unit(32, 16), nn.Conv2d(16, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(image)
        return self.out(self.join(torch.cat((self.up(self.coarse(fine)), fine), 1)))


class ConvNeXt(nn.Module):
    """Depthwise 7x7, LayerNorm over channels moved last, and a free vector that scales each branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(functional.gelu(self.up(hidden)))).permute(0, 3, 1, 2)


class Gated(nn.Module):
    """Temporal convolutions with gated linear units: `[batch, 3, 16, 16]` read as 48 channels of 16 steps."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(48, 2 * width, 3, padding=1), nn.Conv1d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.glu(self.first(image.flatten(1, 2)), dim=1)
        value, gate = self.second(x).chunk(2, dim=1)
        return self.head((torch.tanh(value) * torch.sigmoid(gate) + x).mean(2))


def resnet() -> nn.Module:
    stem = nn.Sequential(unit(3, 16), nn.MaxPool2d(3, 2, 1))
    return Classifier(32, stem, Residual(16, 16), Residual(16, 32, 2), Residual(32, 32))


def resnext() -> nn.Module:
    return Classifier(32, unit(3, 16), Residual(16, 32, 2, groups=4), Residual(32, 32, groups=4))


def mobilenet() -> nn.Module:
    return Classifier(24, unit(3, 16), Inverted(16, 32), unit(16, 24, 3, 2), Inverted(24, 48))


def densenet() -> nn.Module:
    transition = nn.Sequential(nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2))
    return Classifier(44, unit(3, 16), Dense(16, 8, 3), transition, Dense(20, 8, 3), nn.BatchNorm2d(44), nn.ReLU())


def shufflenet() -> nn.Module:
    return Classifier(32, unit(3, 32, 3, 2), Shuffled(32), Shuffled(32), Shuffled(32))


def unet() -> nn.Module:
    return UNet()


def convnext() -> nn.Module:
    return Classifier(32, nn.Conv2d(3, 32, 4, 4), ConvNeXt(32), ConvNeXt(32))


def gated() -> nn.Module:
    return Gated()


def vgg() -> nn.Module:
    """Plain convolutions flattened into a linear layer, channels times 4 times 4."""
    features = [unit(3, 16), nn.MaxPool2d(2), unit(16, 32), nn.MaxPool2d(2), nn.Flatten()]
    return Straight(*features, nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def superresolution() -> nn.Module:
    """Twice the size by pixel shuffle."""
    return Straight(unit(3, 24), nn.Conv2d(24, 64, 3, 1, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(16, 3, 1))


def focus() -> nn.Module:
    """Space to depth, as YOLO's first layer does, in the middle of the network."""
    return Classifier(32, unit(3, 16), nn.PixelUnshuffle(2), unit(64, 32))
