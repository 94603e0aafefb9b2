import random

import numpy as np
import onnx
import pytest

from bevel.backends.onnxruntime import Session
from bevel.errors import CalibrationError, UsageError
from bevel.ir.signature import index_bound, signature
from bevel.passes import synthesis
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.synthesis import synthesize
from bevel.passes.values import smooth
from tests.graphs import graph, mlp

TWO_INPUTS = (
    "two (float[n, 4] a, int64[n] b) => (float[n, 4] y) { c = Cast <to=1> (b)  d = Unsqueeze (c, one)  y = Add (a, d) }"
)


def two_inputs():
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {TWO_INPUTS}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    import bevel

    return bevel.load(model)


def good():
    return {"a": np.zeros((3, 4), np.float32), "b": np.zeros(3, np.int64)}


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({**good(), "c": np.zeros(1)}, "the model has no input 'c'"),
        ({"a": good()["a"]}, "input missing: b: INT64[n]"),
        ({**good(), "b": np.zeros(3, np.int32)}, "wants b: INT64[n], not int32"),
        ({**good(), "b": np.zeros((3, 1), np.int64)}, "not the shape [3, 1]"),
        ({**good(), "a": np.zeros((3, 5), np.float32)}, "wants a: FLOAT[n, 4], not the shape [3, 5]"),
        ({**good(), "b": np.zeros(2, np.int64)}, "n is 3 in another axis, not the shape [2]"),
    ],
)
def test_feeds_that_do_not_fit_are_errors(feed, message):
    with pytest.raises(CalibrationError) as error:
        list(Calibration.of([feed], two_inputs()))
    assert message in str(error.value)
    assert len(list(Calibration.of([good()], two_inputs()))) == 1


def test_files_and_folders(tmp_path):
    model = two_inputs()
    np.savez(tmp_path / "b.npz", **{**good(), "b": np.full(3, 2)})
    np.savez(tmp_path / "a.npz", **good())
    assert [int(feed["b"][0]) for feed in Calibration.of(tmp_path, model)] == [0, 2]
    assert len(list(Calibration.of(str(tmp_path / "a.npz"), model))) == 1


def test_a_single_array_is_enough_for_a_single_input(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 6), np.float32))
    assert len(list(Calibration.of(tmp_path / "x.npy", mlp()))) == 1
    with pytest.raises(CalibrationError, match="the model has 2 inputs"):
        list(Calibration.of(tmp_path / "x.npy", two_inputs()))


def test_onnx_test_data(tmp_path):
    for number in range(2):
        folder = tmp_path / f"test_data_set_{number}"
        folder.mkdir()
        for place, array in enumerate(good().values()):
            (folder / f"input_{place}.pb").write_bytes(onnx.numpy_helper.from_array(array).SerializeToString())
    assert len(list(Calibration.of(tmp_path, two_inputs()))) == 2
    assert len(list(Calibration.of(tmp_path / "test_data_set_0", two_inputs()))) == 1


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_unreadable_files_are_errors(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match="cannot be read"):
        list(Calibration.of(tmp_path / "x.npz", mlp()))


@pytest.mark.parametrize("kind", ["save", "savez", "savez_compressed", "protobuf"])
def test_damaged_files_are_errors_or_inputs(tmp_path, kind):
    array = np.ones((2, 6), np.float32)
    if kind == "protobuf":
        file, source = tmp_path / "input_0.pb", tmp_path
        file.write_bytes(onnx.numpy_helper.from_array(array).SerializeToString())
    elif kind == "save":
        file = source = tmp_path / "x.npy"
        np.save(file, array)
    else:
        file = source = tmp_path / "x.npz"
        getattr(np, kind)(file, x=array)
    whole, chance, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(100):
        damaged = bytearray(whole[: chance.randrange(1, 2 * len(whole))])
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            list(Calibration.of(source, mlp()))
        except CalibrationError:
            refused += 1
    assert refused > 30


def test_pickles_are_not_opened(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CalibrationError, match="cannot be read"):
        list(Calibration.of(tmp_path / "x.npy", mlp()))


def test_absent_and_empty_sources_are_errors(tmp_path):
    with pytest.raises(CalibrationError, match="no such file"):
        Calibration.of(tmp_path / "absent", mlp())
    with pytest.raises(CalibrationError, match="no calibration data"):
        Calibration.of(tmp_path, mlp())


def test_a_file_without_samples_is_an_error(tmp_path):
    """Nothing would be compared, and everything called verified."""
    np.savez(tmp_path / "x.npz", x=np.zeros((0, 6), np.float32))
    with pytest.raises(CalibrationError, match="no samples"):
        list(Calibration.of(tmp_path / "x.npz", mlp()))


def test_streams_can_be_read_again():
    feeds = [{"x": np.zeros((1, 6), np.float32)}] * 2
    for source in (iter(feeds), feeds, lambda: iter(feeds)):
        calibration = Calibration.of(source, mlp())
        assert len(list(calibration)) == len(list(calibration)) == 2


def made_up(model, seed=0, count=3):
    with Session(model) as session:
        return list(synthesize(model, seed, count, session.run))


def test_only_the_feeds_that_are_read_are_made_up(monkeypatch):
    made = []
    monkeypatch.setattr(synthesis, "_feed", lambda *given, make=synthesis._feed: made.append(given) or make(*given))
    with Session(mlp()) as session:
        stream = synthesize(mlp(), 0, 2, session.run)
    made.clear()
    rows = [len(feed["x"]) for feed in stream.samples(100)]
    assert len(rows) < 50 and sum(rows) >= 100  # some rows a feed
    assert len(made) <= len(rows) + 1
    again = stream.more(3)
    assert [id(feed) for feed in again] == [id(feed) for feed in again]


def test_inputs_that_memory_does_not_hold_are_an_error(monkeypatch):
    def full(*arguments):
        raise MemoryError

    with Session(mlp()) as session, pytest.raises(CalibrationError, match="no memory"):
        monkeypatch.setattr("bevel.passes.synthesis._feed", full)
        synthesize(mlp(), 0, 2, session.run)


def test_a_symbol_has_one_size_and_two_symbols_have_two():
    model = graph(
        "m (float[n, k] a, float[k, m] b, float[n, m] c) => (float[n, m] y) { d = MatMul (a, b)  y = Add (d, c) }"
    )
    for feed in made_up(model):
        (n, k), (_, m) = feed["a"].shape, feed["b"].shape
        assert feed["b"].shape[0] == k
        assert feed["c"].shape == (n, m)
        assert len({n, k, m}) == 3


def test_the_same_seed_gives_the_same_inputs_and_another_seed_others():
    first, again, other = made_up(mlp()), made_up(mlp()), made_up(mlp(), seed=1)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0]["x"], other[0]["x"])
    assert len({feed["x"].shape for feed in first}) == 2


EMBEDDING = """embedding (int64[b, s] ids, int64[b, s] attention_mask) => (float[b, s, 4] y) {
  i = Cast <to=6> (ids)
  e = Gather (table, i)
  m = Cast <to=1> (attention_mask)
  u = Unsqueeze (m, last)
  y = Mul (e, u)
}"""


def embedding(rows):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {EMBEDDING}')
    table = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
    model.graph.initializer.extend(
        [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(np.array([2]), "last")]
    )
    import bevel

    return bevel.load(model)


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_indices_stay_within_the_table(rows):
    model = embedding(rows)
    assert index_bound(model.graph.inputs[0]) == rows
    ids = np.concatenate([feed["ids"].ravel() for feed in made_up(model)])
    assert 0 <= ids.min() <= ids.max() < rows
    assert rows < 50 or len(set(ids.tolist())) > 5


def test_rows_of_tokens_are_lines_of_text_and_categories_are_not():
    sizes = [feed["ids"].shape for feed in made_up(embedding(50))]
    assert all(length >= 32 > rows for rows, length in sizes) and len(set(sizes)) == 2
    assert max(made_up(embedding(9))[0]["ids"].shape) < 32


def test_lines_are_as_short_as_a_model_that_knows_few_positions_needs():
    def runs(feed):
        if feed["ids"].shape[1] > 16:
            raise UsageError("there are 16 positions")

    assert next(iter(synthesize(embedding(50), 0, 1, runs)))["ids"].shape == (2, 3)


def test_lines_stay_where_the_batch_has_to_be_one():
    def runs(feed):
        if feed["ids"].shape[0] > 1:
            raise UsageError("one at a time")

    assert next(iter(synthesize(embedding(50), 0, 1, runs)))["ids"].shape == (1, 34)


def test_no_sizes_are_tried_twice():
    tried = []

    def runs(feed):
        tried.append(feed["x"].shape)
        raise UsageError("never")

    with pytest.raises(CalibrationError):
        synthesize(mlp(), 0, 1, runs)
    assert len(tried) > 3  # the last is another smallest integer, which no input of this one is
    assert len(set(tried[:-1])) == len(tried[:-1])


def test_masks_are_mostly_on():
    masks = [feed["attention_mask"] for feed in made_up(embedding(9))]
    assert all(set(np.unique(mask)) <= {0, 1} for mask in masks)
    assert np.mean([mask.mean() for mask in masks]) > 0.5


def test_sums_of_symbols_are_computed():
    model = graph('m (float["past + 1", 2] a, float[past, 2] b) => (float[all, 2] y) { y = Concat <axis=0> (a, b) }')
    for feed in made_up(model):
        assert feed["a"].shape[0] == feed["b"].shape[0] + 1


CACHED = """
decoder (int64[b, s] ids, int64[b, t] attention_mask, float[b, p, 4] past) => (float[b, s, 4] y) {
  one = Constant <value_ints = [1]> ()
  x = Gather (table, ids)
  k = Concat <axis = 1> (past, x)
  turned = Transpose <perm = [0, 2, 1]> (k)
  scores = MatMul (x, turned)
  m = Cast <to = 1> (attention_mask)
  seen = Unsqueeze (m, one)
  w = Add (scores, seen)
  y = MatMul (w, k)
}
"""
COUNTED = (
    "m (int64[1, s] ids, int32[1] lengths, int32 total, float[1, 2, p, 4] past) => (int64[1, s] y) { y = Neg (ids) }"
)


def test_masks_of_decoders_go_over_caches_and_new_tokens(monkeypatch):
    model = graph(CACHED, {"table": (50, 4)})
    for feed in made_up(model):
        rows, length = feed["ids"].shape
        assert length >= 32 and rows > 1
        assert feed["attention_mask"].shape == (rows, length + feed["past"].shape[1]) and feed["past"].shape[1] > 1
    monkeypatch.setattr(synthesis, "_added_plans", lambda inputs: ())
    assert {feed["attention_mask"].shape[1] for feed in made_up(model)} == {1}


def test_numbers_of_tokens_are_those_of_caches_and_new_ones():
    def runs(feed):
        total = feed["past"].shape[2] + feed["ids"].shape[1]
        if feed["total"] != total or feed["lengths"] != total - 1:
            raise UsageError("does not fit")

    feeds = list(synthesize(graph(COUNTED), 0, 4, runs))
    assert len({int(feed["total"]) for feed in feeds}) == 2
    assert all(feed["total"].shape == () and feed["lengths"].dtype == np.int32 for feed in feeds)


def test_sizes_that_the_model_refuses_are_replaced():
    # kernels of 5 without padding twice: needs at least 9 rows
    model = graph("m (float[n, 1, t] x) => (float[n, 1, p] y) { a = Conv (x, k)  y = Conv (a, k) }", {"k": (1, 1, 5)})
    assert made_up(model)[0]["x"].shape[2] >= 9


def test_a_batch_that_has_to_be_one_is_found_before_all_else_grows():
    model = graph("m (float[n, 3, f, 160] x, float[4, 1, 64] h) => (float[n] y) { y = Foo (x, h) }")
    tried = []

    def runs(feed):
        tried.append(feed["x"].size)
        if feed["x"].shape[0] != 1:
            raise UsageError("one at a time")

    assert next(iter(synthesize(model, 0, 2, runs)))["x"].shape[0] == 1
    assert len(tried) < 6


def test_no_feed_is_as_large_as_all_sizes_at_their_largest():
    model = graph("m (float[a, 3, b, 160] x) => (float[a] y) { y = Foo (x) }")
    tried = []

    def runs(feed):
        tried.append(feed["x"].size)
        raise UsageError("never")

    with pytest.raises(CalibrationError):
        synthesize(model, 0, 1, runs)
    assert max(tried) <= 2**24 < 512 * 3 * 512 * 160


def test_inputs_that_cannot_be_small_are_refused_before_anything_is_made():
    model = graph("m (float[n] a, float[2147483648, 3] x) => (float[n] y) { y = Foo (a, x) }")
    with pytest.raises(CalibrationError, match=r"'x: .*2147483648, 3.*too large") as caught:
        synthesize(model, 0, 1, lambda feed: None)
    assert "a name instead of a number" in caught.value.remedy


def test_strings_bools_and_scalars_are_made_up():
    text = "m (string[n] s, bool[n] b, float f) => (string[n] t, bool[n] c, float g) "
    model = graph(text + "{ t = Identity (s)  c = Not (b)  g = Relu (f) }")
    feed = made_up(model)[0]
    assert all(isinstance(word, str) for word in feed["s"])
    assert feed["b"].dtype == bool
    assert feed["f"].shape == ()


def test_a_size_that_is_fixed_inside_is_found_there():
    model = graph("m (float[batch, length] x) => (float[o, p] y) <int64[3] s = {1, 7, -1}> { y = Reshape (x, s) }")

    def runs(feed):
        if feed["x"].shape != (1, 7):
            raise UsageError("traced with one sentence of seven words")

    assert next(iter(synthesize(model, 0, 1, runs)))["x"].shape == (1, 7)


def test_a_model_that_nothing_satisfies_is_an_error_with_the_remedy():
    model = graph("m (float[2, 3] x) => (float[2, 3] y) { y = com.nobody.Foo (x) }")

    def runs(feed):
        raise UsageError("never")

    with pytest.raises(CalibrationError, match="--calibration"):
        synthesize(model, 0, 2, runs)


def test_the_signature_leaves_initializers_out():
    assert [str(wanted) for wanted in signature(mlp())] == ["x: FLOAT[n, 6]"]


@pytest.mark.parametrize(
    ("shape", "height", "width"), [("n, 3, h, w", 2, 3), ("n, h, w, 3", 1, 2), ("1, 1, s, s", 2, 3)]
)
def test_made_up_images_have_enough_pixels(shape, height, width):
    model = graph(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}")
    sizes = [feed["x"].shape for feed in synthesize(model, 0, 2, lambda feed: None)]
    assert all(size[height] % 32 == size[width] % 32 == 0 < size[height] for size in sizes)
    assert len(set(sizes)) == 2
    assert shape == "1, 1, s, s" or all(size[height] != size[width] for size in sizes)


def test_other_axes_than_those_of_images_stay_few():
    model = graph("g (float[n, 64, h, w] x) => (float[n, 64, h, w] y) { y = Relu(x) }")
    (feed,) = synthesize(model, 0, 1, lambda feed: None)
    assert max(feed["x"].shape) == 64


def test_made_up_images_vary_slowly_from_pixel_to_pixel():
    noise = np.random.default_rng(0).standard_normal((200, 3, 16, 16))
    image = smooth(noise, (2, 3))
    assert np.square(image).mean() == pytest.approx(1.0, rel=0.1)
    assert alike(image) > 0.6 > 0.1 > abs(alike(noise))
    model = graph("m (float[n, 3, 16, 16] x) => (float[n, 3, 16, 16] y) { y = Relu (x) }")
    with Execution().open(model) as runs:
        (feed, *_) = synthesize(model, 0, 4, runs.run)
    assert alike(feed["x"]) > 0.6


def alike(image):
    """How much each pixel resembles the one right of it."""
    return float((image[..., 1:] * image[..., :-1]).mean() / np.square(image).mean())
