"""A character GPT with real weights, to compress, transform and adapt: a small Llama trained on Python's own library.

    from benchmarks import character_gpt as gpt

    model = gpt.model(seed=0)                   # an onnx_ir.Model; trained now if FOLDER does not have the weights
    bevel.optimize(model, "reorder-channels", calibration=gpt.calibration())
    gpt.perplexity(model)                       # of the next character, in ONNX Runtime, in files no training saw
    module = gpt.trained(seed=0)                # the same weights as a PyTorch module, in evaluation mode
    gpt.load(module)                            # as a model; `ids` [batch, length] in, logits [batch, length, 97] out

It has what the large ones have: RMS norms before attention and feed-forward, rotary positions by halves, two queries to
each key-value head, a gated feed-forward layer, no biases, an untied head. Four layers of width 128, heads of 64, 512
hidden channels, 1.2 million parameters. The weights follow from the seed (on one machine) and are kept as
`character-gpt-SEED.safetensors` in a folder: FOLDER unless another is given; delete one to train anew.

    python -m benchmarks.character_gpt [--seed 0] [--folder FOLDER]         # trains it, and prints its perplexity
"""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.nn import functional

import bevel
from benchmarks import recovery_data as data
from benchmarks.recovery_data import LENGTH, VOCABULARY, Windows
from bevel.backends.onnxruntime import Session

FOLDER: Final = Path(__file__).parents[1] / ".pytest_cache" / "character_gpt"
WIDTH, LAYERS, HEADS, SHARED, EACH, HIDDEN = 128, 4, 4, 2, 64, 512
TRAINING: Final[dict[str, Any]] = {"epochs": 16, "lr": 3e-3}
BATCHES = 100  # of an epoch
HELD_OUT_WINDOWS, CALIBRATION_WINDOWS = 256, 64
ROWS = 32  # of a feed

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]


class CharacterGPT(nn.Module):
    """Characters `[n, t]` in, logits `[n, t, vocabulary]` of the next ones out."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.RMSNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(0, EACH, 2) / EACH))
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                residual = name.endswith(("out.weight", "down.weight"))  # as in GPT-2: 2 * layers of them add up
                nn.init.normal_(weight, std=0.06 / (2 * LAYERS) ** 0.5 if residual else 0.06)

    def forward(self, ids: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(ids.shape[1], device=ids.device).float(), self.frequencies)
        angles = torch.cat((angles, angles), -1)
        x = self.characters(ids)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        return self.head(self.norm(x))


class Block(nn.Module):
    """A pre-norm transformer block with grouped queries and a gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)
        self.q, self.out = linear(WIDTH, HEADS * EACH), linear(HEADS * EACH, WIDTH)
        self.k, self.v = linear(WIDTH, SHARED * EACH), linear(WIDTH, SHARED * EACH)
        self.gate, self.up, self.down = linear(WIDTH, HIDDEN), linear(WIDTH, HIDDEN), linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x), cos, sin)
        hidden = self.norm2(x)
        return x + self.down(functional.silu(self.gate(hidden)) * self.up(hidden))

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (split(part(x)) for part in (self.q, self.k, self.v))
        q, k = (part * cos + turned(part) * sin for part in (q, k))
        mixed = functional.scaled_dot_product_attention(q, repeated(k), repeated(v), is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], HEADS * EACH))


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def split(x: Tensor) -> Tensor:
    """Tell heads apart: `[n, t, heads * each]` becomes `[n, heads, t, each]`."""
    return x.view(x.shape[0], x.shape[1], -1, EACH).transpose(1, 2)


def turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def repeated(x: Tensor) -> Tensor:
    """Give every query of a key-value head its copy of that."""
    batch, shared, length, each = x.shape
    wide = x[:, :, None].expand(batch, shared, HEADS // SHARED, length, each)
    return wide.reshape(batch, HEADS, length, each)


def trained(seed: int = 0, folder: Path = FOLDER) -> CharacterGPT:
    """Return the trained module, in evaluation mode; trained now, in a few minutes, if the folder does not have it."""
    path = folder / f"character-gpt-{seed}.safetensors"
    torch.manual_seed(seed)
    module = CharacterGPT()
    if path.exists():
        module.load_state_dict(load_file(path))
        return module.eval()
    train(module, Windows(data.source_code()[0], BATCHES), seed)
    keep(module, path)
    return module.eval()


def train(module: nn.Module, windows: Iterable[Any], seed: int) -> None:
    """Train on the next character, on one thread, whose sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bevel.finetune(module, None, windows, labels=-1, seed=seed, **TRAINING)
    finally:
        torch.set_num_threads(threads)


def keep(module: nn.Module, path: Path) -> None:
    """Write the weights so that another process sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as draft:
        save_file(module.state_dict(), Path(draft) / path.name)
        (Path(draft) / path.name).replace(path)


def model(seed: int = 0, folder: Path = FOLDER) -> ir.Model:
    """Return the trained network as a model; every call gives one of its own."""
    return load(trained(seed, folder))


def load(module: nn.Module) -> ir.Model:
    """Return a module like this one as a model, for any batch and length up to the one it was trained on."""
    ids = torch.zeros(2, LENGTH, dtype=torch.int64)
    return bevel.load(module, (ids,), dynamic_shapes={"ids": {0: "batch", 1: "length"}})


def windows_of(text: Tensor, count: int) -> tuple[Array, Array]:
    """Cut the first characters of a text into windows: the characters, and those that follow them."""
    cut = text[: count * (LENGTH + 1)].view(count, LENGTH + 1).numpy()
    return cut[:, :-1], cut[:, 1:]


def perplexity(model: ir.Model, text: Tensor | None = None, windows: int = HELD_OUT_WINDOWS) -> float:
    """Return the perplexity of the next character in ONNX Runtime, in held-out files if no text is given."""
    inputs, labels = windows_of(data.source_code()[1] if text is None else text, windows)
    return data.perplexity(_logits(model, inputs), labels)


def log_probabilities(model: ir.Model, windows: int = HELD_OUT_WINDOWS) -> np.ndarray:
    """Return what a model thinks of the next character in held-out files, `[windows, length, characters]`."""
    inputs, _ = windows_of(data.source_code()[1], windows)
    return np.asarray(log_softmax(_logits(model, inputs).astype(np.float64), axis=-1))


def _logits(model: ir.Model, inputs: np.ndarray) -> np.ndarray:
    with Session(model, threads=1) as session:
        feeds = ({"ids": inputs[start : start + ROWS]} for start in range(0, len(inputs), ROWS))
        return np.concatenate([next(iter(session.run(feed).values())) for feed in feeds])


def calibration(windows: int = CALIBRATION_WINDOWS, seed: int = 0, text: Tensor | None = None) -> list[Feed]:
    """Return feeds for `bevel.optimize(..., calibration=...)`: windows of a text, or of what it was trained on."""
    text = data.source_code()[0] if text is None else text
    starts = torch.randint(len(text) - LENGTH, (windows, 1), generator=torch.Generator().manual_seed(seed))
    ids = text[starts + torch.arange(LENGTH)].numpy()
    return [{"ids": ids[start : start + ROWS]} for start in range(0, windows, ROWS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    print(f"perplexity of held-out files: {perplexity(model(options.seed, options.folder)):.3f}")


if __name__ == "__main__":
    main()
