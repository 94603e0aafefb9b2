import numpy as np
import onnx
import pytest
from scipy.special import log_softmax

import bevel
from bevel.backends.onnxruntime import Session
from bevel.errors import UnsupportedModel
from bevel.ir.signature import signature
from bevel.passes.own_words import ROUNDS, in_own_words, language_model
from bevel.passes.pipeline import calibration_of
from bevel.passes.synthesis import synthesize
from tests.graphs import proto

TOKENS, WIDTH = 40, 8
SHAPES = {"table": (TOKENS, WIDTH), "head": (WIDTH, TOKENS)}
PREDICTS = """language (int64[batch, length] ids) => (float[batch, length, 40] y) {
  e = Gather (table, ids)
  h = CumSum (e, one)
  y = MatMul (h, head)
}"""
LOOKS_AHEAD = PREDICTS.replace("CumSum", "CumSum <reverse = 1>")
SEES_ALL = PREDICTS.replace("h = CumSum (e, one)", "m = ReduceMean <keepdims = 1> (e, axes) h = Add (e, m)")
FORGETS = PREDICTS.replace("CumSum (e, one)", "Tanh (e)")
GIVES_SHARES = PREDICTS.replace("y = MatMul (h, head)", "z = MatMul (h, head) y = Softmax <axis = -1> (z)")
HAS_OTHER_WORDS = PREDICTS.replace("float[batch, length, 40] y", "float[batch, length, 8] y").replace(
    "y = MatMul (h, head)", "y = Relu (h)"
)


def language(text=PREDICTS):
    model = proto(text, SHAPES)
    for name, content in (("one", np.array(1)), ("axes", np.array([1]))):
        if f", {name})" in text:
            model.graph.initializer.append(onnx.numpy_helper.from_array(content, name))
    return bevel.load(model)


def feed(rows=3, length=12):
    return {"ids": np.random.default_rng(1).integers(0, TOKENS, (rows, length))}


def surprise(model, ids):
    """Return how unlikely the model finds each token after those before it, on average."""
    with Session(model) as session:
        likely = log_softmax(session.run({"ids": ids})["y"], axis=-1)
    return -np.take_along_axis(likely[:, :-1], ids[:, 1:, None], -1).mean()


def found(model):
    with Session(model) as session:
        return language_model(signature(model), feed(), session.run)


def test_what_predicts_the_next_token_is_known_by_what_moves_what():
    assert (found(language()).tokens, found(language()).logits) == ("ids", "y")
    assert found(language(GIVES_SHARES)) is not None


@pytest.mark.parametrize("text", [LOOKS_AHEAD, SEES_ALL, FORGETS])
def test_what_looks_ahead_or_forgets_is_no_language_model(text):
    assert found(language(text)) is None


def test_fewer_outputs_than_tokens_can_be_read_back_and_more_cannot():
    assert found(language(HAS_OTHER_WORDS)) is not None
    wide = language()
    with Session(wide) as session:
        answers = {name: np.concatenate([array, array], -1) for name, array in session.run(feed()).items()}
    assert language_model(signature(wide), feed(), lambda given: answers) is None


def test_the_first_tokens_are_as_if_drawn_one_by_one():
    model = language()
    with Session(model) as session:
        wanted = found(model)
        text = wanted.rewritten(feed(), session.run, np.random.default_rng(0))["ids"]
        rng = np.random.default_rng(0)
        noise = -np.log(rng.standard_exponential((3, 12, TOKENS), np.float32))
        slowly = feed()["ids"]
        for place in range(1, slowly.shape[1]):
            slowly[:, place] = (session.run({"ids": slowly})["y"] + noise)[:, place - 1].argmax(-1)
    np.testing.assert_array_equal(text[:, : ROUNDS + 1], slowly[:, : ROUNDS + 1])
    assert not np.array_equal(text, slowly)  # the rest is not
    np.testing.assert_array_equal(text[:, 0], feed()["ids"][:, 0])


def test_text_surprises_the_model_less_than_random_tokens():
    model = language()
    with Session(model) as session:
        text = found(model).rewritten(feed(64), session.run, np.random.default_rng(0))["ids"]
    assert text.dtype == np.int64 and 0 <= text.min() <= text.max() < TOKENS
    assert surprise(model, text) < surprise(model, feed(64)["ids"]) - 1


def test_shares_say_what_their_logarithms_say():
    texts = []
    for model in (language(), language(GIVES_SHARES)):
        with Session(model) as session:
            texts.append(found(model).rewritten(feed(), session.run, np.random.default_rng(0))["ids"])
    np.testing.assert_array_equal(*texts)


def own(model, count=4, seed=0, opened=None):
    opened = [] if opened is None else opened

    def opens():
        opened.append(1)
        return Session(model)

    with Session(model) as session:
        random = synthesize(model, seed, count, session.run)
        return random, in_own_words(random, signature(model), seed, session.run, opens)


def test_feeds_to_come_are_written_in_one_session_and_only_once():
    opened = []
    random, text = own(language(), opened=opened)
    assert len(list(text)) == 4 and not opened
    assert not any(np.array_equal(a["ids"], b["ids"]) for a, b in zip(random, text, strict=True))
    assert text.made_up and "own words" in text.source
    assert text.likely() and not random.likely()
    more = [each["ids"] for each in text.samples(40)]
    assert sum(map(len, more)) >= 40 and len(opened) == 1
    for a, b in zip(more, text.samples(40), strict=True):
        np.testing.assert_array_equal(a, b["ids"])


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    texts = [next(iter(own(language(), seed=seed)[1]))["ids"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(texts[0], texts[1])
    assert not np.array_equal(texts[0], texts[2])


def test_others_keep_their_inputs():
    random, same = own(language(LOOKS_AHEAD))
    assert same is random


def test_a_model_that_refuses_other_tokens_keeps_those_it_runs_on():
    model = language()
    with Session(model) as session:
        random = synthesize(model, 0, 4, session.run)
        known = [each["ids"] for each in random]

        def run(given):
            if not any(np.array_equal(given["ids"], ids) for ids in known):
                raise UnsupportedModel("these tokens are not known")
            return session.run(given)

        assert in_own_words(random, signature(model), 0, run, lambda: Session(model)) is random
        first = next(iter(random))
        assert found(model).rewritten(first, run, np.random.default_rng(0)) is first
        assert in_own_words(random, signature(model), 0, session.run, lambda: Session(model)) is not random


def test_a_run_without_data_is_verified_and_calibrated_on_text():
    report = bevel.optimize(language(), "simplify")
    assert report.inputs == "4 inputs (made-up inputs, text in the model's own words)"
    given = calibration_of(None, language(), 0)
    lengths = {each["ids"].shape[1] for each in given.samples(20)}
    assert min(lengths) >= 32  # lines of text
    text = np.concatenate([each["ids"][:, :32] for each in given.samples(200)])
    random = np.random.default_rng(0).integers(0, TOKENS, text.shape)
    assert surprise(language(), text) < surprise(language(), random) - 1
