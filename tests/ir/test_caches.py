import pytest

from bevel.ir.caches import caches, unclear
from tests.graphs import graph

MHA = """
net (float[b, s, 32] x, float[b, 2, p, 16] past_k, float[b, 2, p, 16] past_v)
  => (float[b, s, 32] y, float[b, 2, t, 16] k, float[b, 2, t, 16] v) {
  y, k, v = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x, , , , past_k, past_v)
}
"""
STACKED = """
net (float[b, s, 32] x, float[96] bias, float[32, 96] w, float[2, b, 2, p, 16] past)
  => (float[b, s, 32] y, float[2, b, 2, t, 16] present) {
  y, present = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, bias, , past)
}
"""
SCATTERED = """
net (float[b, 2, 64, 16] past, float[b, 2, s, 16] new, int64[b] at) => (float[b, 2, 64, 16] present) {
  written = TensorScatter (past, new, at)
  present = Identity (written)
}
"""
UNKNOWN = """
net (float[b, 2, p, 16] past_key, float[b, 2, p, 16] other, float[b, 2, s, 16] new) => (float[b, 2, t, 16] present) {
  both = Concat <axis = 2> (past_key, new)
  present = Relu (both)
}
"""
INSIDE = """
net (float[b, 2, p, 16] past_key, float[b, 2, s, 16] new, bool more) => (float[b, 2, t, 16] present) {
  present = If (more) <
    then_branch = longer () => (float[b, 2, u, 16] both) { both = Concat <axis = 2> (past_key, new) },
    else_branch = same () => (float[b, 2, w, 16] fresh) { fresh = Identity (new) }
  >
}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MHA, {"past_k": ("k", 2, (1, 3)), "past_v": ("v", 2, (1, 3))}),
        (STACKED, {"past": ("present", 3, (0, 2, 4))}),
        (SCATTERED, {"past": ("present", 2, (1, 3))}),
        (UNKNOWN, {}),
        (INSIDE, {}),
    ],
    ids=["apart", "stacked", "written into", "unknown", "inside"],
)
def test_caches_are_found_where_they_come_in_and_go_out(text, expected):
    model = graph(text)
    found = {cache.name: (cache.present.name, cache.positions, cache.channels) for cache in caches(model)}
    assert found == expected
    assert unclear(model) == ([] if expected else ["past_key"])
