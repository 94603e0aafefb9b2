"""Published classes pruned in place: load, halve, apply, compare, train one step, save and load.

    pip install -r benchmarks/requirements-torch.txt -e ".[torch]"
    python benchmarks/apply_modules.py [NAME ...]

Every module is the class as its package has it, with random weights (nothing is downloaded): ResNet-50, ViT-B/16 and
BERT at their full size, Llama with grouped queries at a reduced one. Each row is the outcome of

    model = bevel.load(module, example)             # the graph
    bevel.optimize(model, "prune-channels{ratio=0.5}")
    bevel.apply(module, model)                      # the module, in place
    one step of AdamW; state_dict saved; loaded into a new instance to which the plan, from its file, was applied

Errors are relative to the largest output: `onnx` against the saved ONNX file in ONNX Runtime, `reload` against the
trained module. `trained` counts the parameters that the step moved. The command fails if an error is above 1e-4, an
output constant, or a parameter did not move.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
import transformers
from torch import Tensor, nn

import bevel
from bevel.frontends.torch import load
from bevel.ir.plan import Plan, plan
from bevel.modules import apply

TOLERANCE = 1e-4
PASSES = "prune-channels{ratio=0.5}"
TOKENS = {"vocab_size": 4000}


@dataclass(frozen=True)
class Case:
    """A module and what it is called with."""

    make: Callable[[], nn.Module]
    example: dict[str, Any]


def resnet50() -> Case:
    return Case(torchvision.models.resnet50, {"x": torch.randn(2, 3, 224, 224)})


def vit_b_16() -> Case:
    def make() -> nn.Module:
        module = torchvision.models.vit_b_16()
        nn.init.normal_(module.heads.head.weight, std=0.02)  # it starts at zero, and so would every output be
        return module

    return Case(make, {"x": torch.randn(2, 3, 224, 224)})


def bert() -> Case:
    config = transformers.BertConfig(**TOKENS)
    ids = torch.randint(0, config.vocab_size, (2, 32))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    return Case(lambda: transformers.BertForSequenceClassification(config), {"input_ids": ids, "attention_mask": mask})


def llama() -> Case:
    def make() -> nn.Module:
        config = transformers.LlamaConfig(
            **TOKENS,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=16,
            num_key_value_heads=4,
            use_cache=False,
        )
        return transformers.LlamaForCausalLM(config)

    return Case(make, {"input_ids": torch.randint(0, TOKENS["vocab_size"], (2, 32))})


CASES = {case.__name__: case for case in (resnet50, vit_b_16, bert, llama)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *CASES], help="which modules; all if none is named")
    names = parser.parse_args().names or list(CASES)
    print(
        f"{'module':<10}{'parameters (M)':>18}{'attributes':>12}{'onnx':>10}{'reload':>10}{'trained':>12}{'seconds':>9}"
    )
    good = [row(name) for name in names]
    sys.exit(0 if all(good) else 1)


def row(name: str) -> bool:
    torch.manual_seed(0)
    case = CASES[name]()
    module = case.make().eval()
    start, before = time.perf_counter(), millions(module)
    model = load(module, case.example)
    bevel.optimize(model, PASSES)
    done = apply(module, model, example_inputs=case.example)
    with tempfile.TemporaryDirectory() as folder:
        plan(model).save(Path(folder) / "plan.json")
        bevel.save(model, Path(folder) / "small.onnx")
        onnx_error = apart(in_onnxruntime(Path(folder) / "small.onnx", case), answer(module, case))
        moved, parameters = trained(module, case)
        torch.save(module.state_dict(), Path(folder) / "small.pt")
        twin = case.make().eval()
        apply(twin, Plan.load(Path(folder) / "plan.json"))
        twin.load_state_dict(torch.load(Path(folder) / "small.pt"))
    reload_error = apart(answer(module, case), answer(twin, case))
    sizes = f"{before:.1f} -> {millions(module):.1f}"
    print(
        f"{name:<10}{sizes:>18}{len(done.attributes):>12}{onnx_error:>10.1e}{reload_error:>10.1e}"
        f"{f'{moved}/{parameters}':>12}{time.perf_counter() - start:>9.0f}",
        flush=True,
    )
    return max(onnx_error, reload_error) <= TOLERANCE and moved == parameters and not done.constant


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def first(result: Any) -> Tensor:
    """The module's main output: logits of transformers, the tensor itself elsewhere."""
    return result if isinstance(result, Tensor) else result.logits


def answer(module: nn.Module, case: Case) -> np.ndarray:
    with torch.no_grad():
        return first(module(**case.example)).numpy()


def in_onnxruntime(path: Path, case: Case) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {wanted.name: case.example[wanted.name].numpy() for wanted in session.get_inputs()})[0]


def apart(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def trained(module: nn.Module, case: Case) -> tuple[int, int]:
    """Take one step of AdamW; return how many parameters it moved, of how many there are."""
    before = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, weight_decay=0.0)
    module.train()
    # Not a mean of squares: by a softmax, every output and every weight before it has a gradient.
    torch.logsumexp(first(module(**case.example)).flatten(1), 1).sum().backward()
    optimizer.step()
    module.eval()
    moved = [not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True)]
    return sum(moved), len(moved)


if __name__ == "__main__":
    main()
