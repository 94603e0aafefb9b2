"""What can be built: a name, the PyTorch module behind it and inputs that fit it. Needs torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from tests.zoo import convolution, language, mamba, vision

LENGTH = 12  # of a sequence, where it cannot vary
SHOWN = (2, 12)  # batch and sequence length of what an exporter sees
BATCHED = {0: "batch"}
TEXT = {0: "batch", 1: "sequence"}


def images(batch: int, _: int) -> dict[str, Tensor]:
    return {"image": torch.randn(batch, 3, 16, 16)}


def tokens(batch: int, length: int) -> dict[str, Tensor]:
    return {"ids": torch.randint(language.VOCABULARY, (batch, length))}


def masked_tokens(batch: int, length: int) -> dict[str, Tensor]:
    """The last third of the last row is padding."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, -(length // 3) :] = 0
    return {**tokens(batch, length), "mask": mask, "types": torch.randint(2, (batch, length))}


@dataclass(frozen=True)
class Recipe:
    """`build` makes the module, `inputs(batch, length)` its keyword arguments, `axes` names what is dynamic."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], dict[str, Tensor]] = tokens
    axes: dict[int, str] = field(default_factory=lambda: TEXT)
    fresh: bool = False
    """Keep the initial normalisation parameters: then all are equal, and exporters merge them."""
    shown: tuple[int, int] = SHOWN
    """Batch and sequence length of what the exporters see."""

    def feed(self, batch: int, length: int) -> dict[str, Tensor]:
        """Seeded inputs of this size, or of the one length that the model knows."""
        torch.manual_seed(batch)
        return self.inputs(batch, length if 1 in self.axes else LENGTH)

    def example(self) -> dict[str, Tensor]:
        """What an exporter is shown."""
        return self.feed(*self.shown)

    def module(self) -> nn.Module:
        """Seeded, in evaluation mode, every parameter and statistic away from its neutral value unless `fresh`."""
        torch.manual_seed(0)
        module = self.build().eval()
        if not self.fresh:
            perturb(module)
        return module


def perturb(module: nn.Module) -> None:
    """Move biases, gains and BatchNorm statistics off 0 and 1, where a wrong pairing of channels would not show."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            elif tensor.is_floating_point() and tensor.ndim == 1 and not name.endswith("frequencies"):
                tensor.add_(torch.randn_like(tensor) * 0.1)


def vision_recipe(build: Callable[[], nn.Module]) -> Recipe:
    return Recipe(build, images, BATCHED)


RECIPES: dict[str, Recipe] = {
    "gpt": Recipe(language.GPT),
    "gpt-fresh": Recipe(language.GPT, fresh=True),
    "bert": Recipe(language.Bert, masked_tokens),
    "llama": Recipe(language.Llama),
    "llama-tied": Recipe(partial(language.Llama, tied=True)),
    "llama-fused": Recipe(partial(language.Llama, fused=True)),
    "encoder": Recipe(language.Encoder, axes=BATCHED),  # nn.MultiheadAttention traces its length as a number
    "mamba": Recipe(mamba.Mamba, axes=BATCHED),  # how often its scan doubles depends on the length
    # PyTorch's exporter captures every step of a recurrence before it puts one operator in their place.
    "lstm": Recipe(language.Recurrent, shown=(2, 3)),
    "gru": Recipe(partial(language.Recurrent, nn.GRU), shown=(2, 3)),
    "vit": vision_recipe(vision.ViT),
    "swin": vision_recipe(vision.Swin),
    **{
        build.__name__: vision_recipe(build)
        for build in (
            convolution.resnet,
            convolution.resnext,
            convolution.mobilenet,
            convolution.densenet,
            convolution.shufflenet,
            convolution.unet,
            convolution.convnext,
            convolution.gated,
            convolution.vgg,
            convolution.superresolution,
            convolution.focus,
        )
    },
}
