"""Other tools' methods, each as what reads a file, quantizes its layers and writes the result.

A tool is imported when a method of it is asked for. All are told to leave tables alone, to compute in 8 bits where
weights are in blocks (`accuracy_level=4`, which Quark's GPTQ does not have), and not to fuse products with additions
first, since they do not quantize the `Gemm` that comes of it. The largest inputs are joined to one batch for Neural
Compressor's AWQ, which takes batches of one shape, and for Quark's GPTQ, which takes the first batch alone.

Neural Compressor's files with zero points and an odd number of blocks a row do not load in ONNX Runtime, and are mended
here. At other widths than 4 it rounds weights and leaves them in floats: the row says what its rounding is worth, and
its 32 bits that nothing is saved. Olive's HQQ is left out: in 0.13 its groups lie across those that the product reads,
and answers are off by more than they are worth. GPTQ of ONNX Runtime 1.32, Neural Compressor 1.0 and Quark 0.13 is one
loop, and hands errors on by the half of a triangular matrix that is zero: whatever the data, it rounds to nearest.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import numpy as np

from benchmarks.quantization_child import Feeds

Quantize: TypeAlias = Callable[[str, str, Feeds], None]

INT8_LAYERS = ["MatMul", "Gemm", "Conv"]
IN_8_BITS = 4  # of accuracy levels
ZERO_POINTS = 3  # of inputs of a product with quantized weights


class Reader:
    """Hands out calibration data as each tool wants it."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = feeds
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        return next(self.rest, None)

    def rewind(self) -> None:
        self.rest = iter(self.feeds)


def joined(feeds: Feeds) -> Feeds:
    """Return the inputs of the largest shape in one batch."""

    def shapes(feed: dict[str, Any]) -> list[tuple[int, ...]]:
        return [array.shape[1:] for array in feed.values()]

    largest = max(map(shapes, feeds))
    alike = [feed for feed in feeds if shapes(feed) == largest]
    return [{name: np.concatenate([feed[name] for feed in alike]) for name in alike[0]}]


def onnxruntime(method: str, bits: int, block: int) -> Quantize:
    """Return what runs ONNX Runtime's quantizer of weights, or one of those that quantize activations, too."""
    if method in INT8:
        return INT8[method]
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as tool

    def config(feeds: Feeds) -> tool.WeightOnlyQuantConfig:
        if method == "hqq":
            return tool.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)
        if method == "k-quant":
            return tool.KQuantWeightOnlyQuantConfig()
        if method == "gptq":
            return tool.GPTQWeightOnlyQuantConfig(calibration_data_reader=Reader(feeds), block_size=block)
        symmetric = method == "nearest"
        return tool.DefaultWeightOnlyQuantConfig(block, is_symmetric=symmetric, accuracy_level=IN_8_BITS, bits=bits)

    def run(source: str, result: str, feeds: Feeds) -> None:
        quantizer = tool.MatMulNBitsQuantizer(
            onnx.load(source), bits=bits, block_size=block, accuracy_level=IN_8_BITS, algo_config=config(feeds)
        )
        quantizer.process()
        quantizer.model.save_model_to_file(result)

    return run


def dynamic_int8(source: str, result: str, feeds: Feeds) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, result, op_types_to_quantize=INT8_LAYERS, per_channel=True, weight_type=QuantType.QInt8)


def static_int8(source: str, result: str, feeds: Feeds) -> None:
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory(prefix="bevel-static-") as folder:
        prepared = Path(folder) / "model.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            result,
            Reader(feeds),
            op_types_to_quantize=INT8_LAYERS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def neural_compressor(method: str, bits: int, block: int) -> Quantize:
    """Return what runs Neural Compressor's quantizer of weights for ONNX."""
    import onnx
    from onnx_neural_compressor.quantization import matmul_nbits_quantizer as tool
    from onnxruntime import GraphOptimizationLevel

    def config(feeds: Feeds) -> tool.WeightOnlyQuantConfig:
        if method == "awq":
            return tool.AWQWeightOnlyQuantConfig(Reader(joined(feeds)))
        if method == "gptq":
            return tool.GPTQWeightOnlyQuantConfig(Reader(feeds))
        return tool.RTNWeightOnlyQuantConfig()

    def run(source: str, result: str, feeds: Feeds) -> None:
        symmetric = method == "nearest"
        quantizer = tool.MatMulNBitsQuantizer(
            source,
            block,
            symmetric,
            IN_8_BITS,
            algo_config=config(feeds),
            n_bits=bits,
            optimization_level=GraphOptimizationLevel.ORT_DISABLE_ALL,
        )
        quantizer.process()
        for node in quantizer.model.graph.node:
            if node.op_type == "MatMulNBits" and len(node.input) == ZERO_POINTS + 1:
                repack(quantizer.model, node)
        onnx.save(quantizer.model, result)

    return run


def repack(model: Any, node: Any) -> None:
    """Start each row of 4-bit zero points at a byte; Neural Compressor lets one follow on another."""
    import onnx

    stored = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[ZERO_POINTS])
    given = {attribute.name: attribute.i for attribute in node.attribute}
    blocks = -(-given["K"] // given["block_size"])
    flat = onnx.numpy_helper.to_array(stored).ravel()
    single = np.stack([flat & 15, flat >> 4], 1).ravel()[: given["N"] * blocks].reshape(-1, blocks)
    even = np.pad(single, ((0, 0), (0, blocks % 2)))
    stored.CopyFrom(onnx.numpy_helper.from_array(even[:, ::2] | even[:, 1::2] << 4, stored.name))


def olive(method: str, bits: int, block: int) -> Quantize:
    """Return what runs one of Olive's passes over ONNX models."""
    import onnx
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.kquant_quantization import OnnxKQuantQuantization
    from olive.passes.onnx.rtn_quantization import OnnxBlockWiseRtnQuantization

    kind, options = {
        "nearest": (OnnxBlockWiseRtnQuantization, {"bits": bits, "is_symmetric": True}),
        "nearest, zero points": (OnnxBlockWiseRtnQuantization, {"bits": bits, "is_symmetric": False}),
        "k-quant": (OnnxKQuantQuantization, {"bits": bits}),
    }[method]

    def run(source: str, result: str, feeds: Feeds) -> None:
        nodes = onnx.load(source, load_external_data=False).graph.node
        tables = [node.name for node in nodes if node.op_type == "Gather"]
        given = {"block_size": block, "accuracy_level": IN_8_BITS, "nodes_to_exclude": tables, **options}
        quantize = create_pass_from_dict(kind, given, disable_search=True)
        written = quantize.run(ONNXModelHandler(source), str(Path(result).with_suffix("")))
        Path(written.model_path).replace(result)

    return run


def quark(method: str, bits: int, block: int) -> Quantize:
    """Return what runs AMD Quark's quantizer of weights for ONNX."""
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, QuantizationConfig

    algorithm = {"hqq": "HQQ", "gptq": "GPTQ"}.get(method, "DEFAULT")
    symmetric = method == "nearest"
    weights = {"Bits": bits, "GroupSize": block, "Symmetric": symmetric, "AccuracyLevel": IN_8_BITS}
    gptq = {"Bits": bits, "GroupSize": block, "WeightSymmetric": False, "PerChannel": True}
    options = {"UseMatMulNBits": True, "MatMulNBitsParams": {"Algorithm": algorithm, **weights}, "GPTQParams": gptq}

    def run(source: str, result: str, feeds: Feeds) -> None:
        settings = QuantizationConfig(optimize_model=False, print_summary=False, extra_options=options)
        quantizer = ModelQuantizer(Config(global_quant_config=settings))
        quantizer.quantize_model(source, result, Reader(joined(feeds)))

    return run


INT8: Final[dict[str, Quantize]] = {"dynamic int8": dynamic_int8, "static int8": static_int8}
TOOLS: Final[dict[str, Callable[[str, int, int], Quantize]]] = {
    "onnxruntime": onnxruntime,
    "neural-compressor": neural_compressor,
    "olive": olive,
    "quark": quark,
}
