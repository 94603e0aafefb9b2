"""The groups of six networks, as text: a change of the analysis shows in the diff.

`UPDATE_GOLDEN=1 pytest tests/test_golden.py` writes the files anew.
"""

import os
from pathlib import Path

import pytest

import bevel
from tests import zoo

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = {
    "resnet50": lambda: zoo.light("resnet50"),
    "shufflenet": lambda: zoo.path("shufflenet", "dynamo-optimized"),
    "gpt": lambda: zoo.path("gpt", "dynamo"),
    "bert": lambda: zoo.path("bert", "dynamo"),
    "llama-fused": lambda: zoo.path("llama-fused", "dynamo"),
    "lstm": lambda: zoo.path("lstm", "torchscript"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_what_an_expert_would_name(name: str) -> None:
    text = "".join(f"{group}\n" for group in bevel.groups(bevel.load(NETWORKS[name]())))
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()
