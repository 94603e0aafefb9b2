"""The demo's own figures: what README says of the built-in model holds."""

import numpy as np

from bevel import demo
from bevel.backends.onnxruntime import Session
from bevel.frontends.onnx import load
from bevel.models import path

README_ACCURACY = 0.98


def test_the_shipped_model_is_small_and_right():
    digits = demo.Digits.shipped()
    assert path("digits.onnx").stat().st_size < 1_000_000
    assert path("digits.npz").stat().st_size < 200_000
    with Session(load(path("digits.onnx"))) as session:
        (logits,) = session.run({"image": digits.image}).values()
    assert (logits.argmax(1) == digits.label).mean() >= README_ACCURACY


def test_no_image_is_both_for_the_test_and_for_calibration():
    digits = demo.Digits.shipped()
    images = np.concatenate([digits.image, digits.calibration]).reshape(-1, 64)
    assert len(np.unique(images, axis=0)) == len(images)


def test_the_demo_prints_accuracy_and_a_verdict_for_every_pipeline(capsys, monkeypatch):
    monkeypatch.setattr(demo, "ROUNDS", 1)
    demo.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert len(lines) == 1 + len(demo.PIPELINES)
