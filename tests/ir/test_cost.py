import pytest

from bevel.ir.cost import Cost, cost
from tests.graphs import graph, mlp


def test_an_mlp_costs_its_products_per_sample():
    assert cost(mlp()) == Cost(parameters=6 * 8 + 8 + 8 * 3, bytes=4 * (6 * 8 + 8 + 8 * 3), macs=6 * 8 + 8 * 3)


@pytest.mark.parametrize(
    ("text", "weights", "macs"),
    [
        ("m (float[1,4,8,8] x) => (float[1,6,6,6] y) { y = Conv (x, w) }", {"w": (6, 4, 3, 3)}, 6 * 36 * 4 * 9),
        (
            "m (float[1,4,8,8] x) => (float[1,6,6,6] y) { y = Conv <group=2> (x, w) }",
            {"w": (6, 2, 3, 3)},
            6 * 36 * 2 * 9,
        ),
        (
            "m (float[1,4,8,8] x) => (float[1,6,9,9] y) { y = ConvTranspose (x, w) }",
            {"w": (4, 6, 2, 2)},
            4 * 64 * 6 * 4,
        ),
        ("m (float[5,4] x) => (float[5,3] y) { y = Gemm <transB=1> (x, w) }", {"w": (3, 4)}, 5 * 4 * 3),
        ("m (float[2,5,4] x) => (float[2,5,3] y) { y = MatMul (x, w) }", {"w": (4, 3)}, 2 * 5 * 4 * 3),
        (
            'm (float[2,5,4] x) => (float[2,3,5] y) { y = Einsum <equation="bsi,io->bos"> (x, w) }',
            {"w": (4, 3)},
            2 * 5 * 4 * 3,
        ),
        (
            "m (float[7,2,4] x) => (float[7,1,2,5] y) { y = LSTM <hidden_size=5> (x, w, r) }",
            {"w": (1, 20, 4), "r": (1, 20, 5)},
            14 * 180,
        ),
        ("m (float[2,3,5,8] x) => (float[2,3,5,8] y) { y = Attention (x, x, x) }", {}, 2 * 2 * 3 * 5 * 5 * 8),
        ("m (float[4] x) => (float[4] y) { y = Relu (x) }", {}, 0),
    ],
)
def test_macs(text, weights, macs):
    assert cost(graph(text, weights)).macs == macs


def test_what_has_no_shape_is_counted_as_such():
    model = graph(
        "m (float[n, 4] x) => (float[n, 3] y) { a = com.nobody.Foo (x)  b = com.nobody.Foo (x)  y = MatMul (a, b) }"
    )
    model.graph.outputs[0].shape = None
    assert cost(model) == Cost(0, 0, 0, uncounted=1)


def test_indices_are_bytes_but_no_parameters():
    model = graph("m (float[2, 3] x) => (float[3, 2] y) <int64[2] s = {3, 2}> { y = Reshape (x, s) }")
    assert cost(model) == Cost(parameters=0, bytes=16, macs=0)
