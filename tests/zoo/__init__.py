"""Models to test with: built from PyTorch in the styles exporters use, and found in installed packages.

zoo.model("llama", "torchscript")     an onnx.ModelProto, built once and kept in the pytest cache
zoo.trials("llama")                   inputs with what PyTorch computes for them, of two different sizes
zoo.light("resnet50")                 a full-size architecture with constant weights, from the onnx package
zoo.magika(), zoo.minilm()            trained models from their own packages
zoo.node_tests()                      the operator conformance cases that ONNX Runtime passes
"""

from tests.zoo.built import NAMES, STYLES, model, path, trials
from tests.zoo.conformance import Case, model_tests, node_tests
from tests.zoo.found import LIGHT, light, light_feed, magika, minilm

__all__ = [
    "LIGHT",
    "NAMES",
    "STYLES",
    "Case",
    "light",
    "light_feed",
    "magika",
    "minilm",
    "model",
    "model_tests",
    "node_tests",
    "path",
    "trials",
]
