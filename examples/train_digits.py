"""Train the built-in model: a small residual network on scikit-learn's digits, exported with its BatchNorm kept.

    python examples/train_digits.py [--output bevel/models] [--epochs 40]

After a third of the epochs, half of the channels of every coupled group, those of smallest norm, begin to fade: all
their weights shrink a little more at each step ("growing regularization", Wang et al., ICLR 2021), and the rest learns
to do without them. Pruning by magnitude then finds them. An ordinary network, trained without this, loses much of its
accuracy to magnitude pruning unless something repairs it afterwards.

The 1,797 images are cut three ways, stratified by class: training, calibration and test share no image.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
TEST, CALIBRATION = 500, 200  # images; the remaining 1,097 are for training
FADING = 0.5  # part of each group that fades
STRONGEST = 0.05  # what the last steps take off the fading weights, in parts of themselves
BATCH = 64


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, as in ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class Digits(nn.Module):
    """Images `[n, 1, 8, 8]` with values 0 to 1 in, logits `[n, 10]` out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(Block(32, 32), Block(32, 64, 2), Block(64, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = self.blocks(functional.relu(self.norm(self.stem(image))))
        return self.head(features.mean((2, 3)))

    def coupled(self) -> list[list[tuple[Tensor, int]]]:
        """For each group of channels that stand or fall together: the tensors, and which axis of each counts them."""
        first, second, third = self.blocks
        down, down_norm = second.shortcut
        inner = [inside(block) for block in self.blocks]
        wide = [
            *written(self.stem, self.norm),
            *written(first.conv2, first.norm2),
            *read(first.conv1, second.conv1, down),
        ]
        narrow = [*written(second.conv2, second.norm2), *written(down, down_norm), *written(third.conv2, third.norm2)]
        return [*inner, wide, [*narrow, *read(third.conv1, self.head)]]


def inside(block: Block) -> list[tuple[Tensor, int]]:
    return [*written(block.conv1, block.norm1), *read(block.conv2)]


def written(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> list[tuple[Tensor, int]]:
    return [(layer.weight, 0), (norm.weight, 0), (norm.bias, 0)]


def read(*layers: nn.Conv2d | nn.Linear) -> list[tuple[Tensor, int]]:
    return [(layer.weight, 1) for layer in layers]


def main() -> None:
    options = arguments()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # one thread: the sums come out the same on every machine of one kind
    train, calibration, test = split()
    network = Digits()
    fit(network, *train, epochs=options.epochs)
    network.eval()
    print(f"test accuracy {accuracy(network, *test):.1%} on {len(test[1])} images")
    options.output.mkdir(parents=True, exist_ok=True)
    export(network, options.output / "digits.onnx")
    save(options.output / "digits.npz", test, calibration)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "bevel" / "models")
    parser.add_argument("--epochs", type=int, default=40)
    return parser.parse_args()


def split() -> list[tuple[Tensor, Tensor]]:
    """Training, calibration and test images with their labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    rest, test, rest_labels, test_labels = train_test_split(
        images, labels, test_size=TEST, stratify=labels, random_state=SEED
    )
    train, calibration, train_labels, calibration_labels = train_test_split(
        rest, rest_labels, test_size=CALIBRATION, stratify=rest_labels, random_state=SEED
    )
    pairs = [(train, train_labels), (calibration, calibration_labels), (test, test_labels)]
    return [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in pairs]


def fit(network: Digits, images: Tensor, labels: Tensor, *, epochs: int) -> None:
    descent = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, 0.1, total_steps=epochs * steps)
    fading: list[tuple[Tensor, int, Tensor]] = []
    for epoch in range(epochs):
        if epoch == epochs // 3:
            fading = weakest(network)
        for index in torch.randperm(len(images)).split(BATCH):
            loss = functional.cross_entropy(network(shifted(images[index])), labels[index], label_smoothing=0.05)
            descent.zero_grad()
            loss.backward()
            descent.step()
            schedule.step()
            shrink(fading, STRONGEST * epoch / epochs)


@torch.no_grad()
def weakest(network: Digits) -> list[tuple[Tensor, int, Tensor]]:
    """Each tensor of each group, its channel axis, and the channels there of smallest norm over the whole group."""
    found = []
    for members in network.coupled():
        order = sum(squares(tensor, axis) for tensor, axis in members).argsort()
        found += [(tensor, axis, order[: int(FADING * len(order))]) for tensor, axis in members]
    return found


def squares(tensor: Tensor, axis: int) -> Tensor:
    """The sum of squares of each entry along `axis`."""
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1).square().sum(1)


@torch.no_grad()
def shrink(fading: list[tuple[Tensor, int, Tensor]], part: float) -> None:
    for tensor, axis, channels in fading:
        tensor.index_copy_(axis, channels, tensor.index_select(axis, channels) * (1 - part))


def shifted(images: Tensor) -> Tensor:
    """Each batch moved by at most one pixel either way, the only augmentation."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    padded = functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (network(images).argmax(1) == labels).float().mean().item()


def export(network: nn.Module, path: Path) -> None:
    """Write ONNX with named parameters. Only constants are folded: the exporter's optimizer folds BatchNorm too."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        network,
        (torch.rand(2, 1, 8, 8),),
        dynamo=True,
        optimize=False,
        opset_version=18,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    optimizer.fold_constants(program.model)
    drop_zero_biases(program.model)
    optimizer.remove_unused_nodes(program.model)
    drop_traces(program.model)
    program.model.ir_version = 10
    onnx.checker.check_model(program.model_proto, full_check=True)
    onnx.save(program.model_proto, path)


def drop_zero_biases(model: ir.Model) -> None:
    """The exporter gives a convolution without bias one of zeros."""
    for node in model.graph:
        if node.op_type == "Conv" and not node.inputs[2].const_value.numpy().any():
            node.replace_input_with(2, None)
            node.resize_inputs(2)


def drop_traces(model: ir.Model) -> None:
    """Stack traces hold paths of the machine that exported."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for item in (model.graph, *model.graph, *values, *(output for node in model.graph for output in node.outputs)):
        item.metadata_props.clear()


def save(path: Path, test: tuple[Tensor, Tensor], calibration: tuple[Tensor, Tensor]) -> None:
    np.savez_compressed(
        path,
        image=test[0].numpy(),
        label=test[1].numpy().astype(np.uint8),
        calibration=calibration[0].numpy(),
    )


if __name__ == "__main__":
    main()
