"""What a Slice leaves of an axis of unknown size is unknown too."""

import numpy as np

from bevel.backends.onnxruntime import Session
from tests.graphs import graph

COUNTED = """
counted (float[batch, length, 4] x) => (float[batch, left, 1] y)
<int64[1] start = {0}, int64[1] end = {512}, int64[1] axis = {1}> {
  part = Slice (x, start, end, axis)
  count = Shape <start = 1, end = 2> (part)
  factor = Cast <to = 1> (count)
  y = Mul (part, factor)
}
"""


def test_a_bound_beyond_an_unknown_size_is_not_taken_for_the_size() -> None:
    model = graph(COUNTED)
    with Session(model) as session:
        answer = session.run({"x": np.ones((2, 5, 4), np.float32)})["y"]
    assert answer.max() == 5  # not 512


def test_one_entry_of_an_unknown_size_is_one_entry() -> None:
    model = graph(COUNTED.replace("{512}", "{1}"))
    assert next(iter(model.graph)).outputs[0].shape[1] == 1
