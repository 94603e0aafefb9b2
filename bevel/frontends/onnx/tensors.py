"""Tensors and types of a parsed model: element types that exist, sizes that are possible, data that fits them."""

import math
from collections.abc import Iterable
from typing import Final

import onnx
import onnx_ir as ir

from bevel.errors import InvalidModel, UnsupportedModel

LARGEST: Final = 2**42
"""Bytes a tensor may say it has: four terabytes, beyond any network."""

AGAIN: Final = "the file is damaged; download or export the model again"

NO_MAPS: Final = (
    "export tensors, not maps: a classifier with options={'zipmap': False} in skl2onnx, zipmap=False in onnxmltools; "
    "or cut a file before its ZipMap, with onnx.utils.extract_model"
)

COMPLEX: Final = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
FLOAT_DATA: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.COMPLEX64)
DOUBLE_DATA: Final = (onnx.TensorProto.DOUBLE, onnx.TensorProto.COMPLEX128)
UINT64_DATA: Final = (onnx.TensorProto.UINT32, onnx.TensorProto.UINT64)


def check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse a tensor whose type is unknown, whose sizes are impossible, or whose data does not fill them."""
    if tensor.HasField("segment"):
        raise UnsupportedModel("is stored in segments", where=where, remedy="store the tensor in one piece")
    dtype = element_type(tensor.data_type, where)
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > LARGEST:
        raise InvalidModel(f"has the impossible shape {list(tensor.dims)}", where=where, remedy=AGAIN)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        check_reference(tensor, where)
        return
    count = math.prod(tensor.dims)
    if dtype == ir.DataType.STRING:
        check_amount(len(tensor.string_data), count, "strings", where)
    elif tensor.HasField("raw_data"):
        check_amount(len(tensor.raw_data), byte_count(count, dtype), "bytes", where)
    else:
        check_amount(typed_count(tensor), expected_typed_count(count, tensor.data_type, dtype), "numbers", where)


def check_reference(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse a reference to external data that names no place, or an extent that is no number."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    extent = [entries.get(key, "0") for key in ("offset", "length")]
    if not isinstance(entries.get("location"), str) or not all(text.isdecimal() for text in extent):
        raise InvalidModel(f"is said to be outside, at {entries}", where=where, remedy=AGAIN)


def check_text(texts: Iterable[str | bytes], where: str) -> None:
    """Refuse names that are not UTF-8; protobuf gives those as bytes."""
    for text in texts:
        if not isinstance(text, str):
            raise InvalidModel(f"the name {text!r} is not valid text", where=where, remedy=AGAIN)


def check_amount(found: int, expected: int, unit: str, where: str) -> None:
    """Refuse a tensor with more or less data than its shape says."""
    if found != expected:
        raise InvalidModel(f"has {found} {unit} of data, its shape needs {expected}", where=where, remedy=AGAIN)


def element_type(number: int, where: str) -> ir.DataType:
    """Give the element type of a number, if it is one that can be stored."""
    if number not in ir.DataType._value2member_map_ or number == ir.DataType.UNDEFINED:
        raise InvalidModel(f"has the unknown element type {number}", where=where, remedy=AGAIN)
    return ir.DataType(number)


def byte_count(count: int, dtype: ir.DataType) -> int:
    """Give the bytes that `count` elements take, those below a byte packed.

    >>> byte_count(3, ir.DataType.FLOAT), byte_count(3, ir.DataType.INT4)
    (12, 2)
    """
    return -(-count * dtype.bitwidth // 8)


def typed_count(tensor: onnx.TensorProto) -> int:
    """Give the number of entries in the field that belongs to the tensor's element type."""
    if tensor.data_type in FLOAT_DATA:
        return len(tensor.float_data)
    if tensor.data_type in DOUBLE_DATA:
        return len(tensor.double_data)
    if tensor.data_type in UINT64_DATA:
        return len(tensor.uint64_data)
    return len(tensor.int64_data if tensor.data_type == onnx.TensorProto.INT64 else tensor.int32_data)


def expected_typed_count(count: int, number: int, dtype: ir.DataType) -> int:
    """Give the entries a typed field has: two for a complex number, one for each byte of packed ones."""
    if number in COMPLEX:
        return 2 * count
    return byte_count(count, dtype) if dtype.bitwidth in (2, 4) else count


def check_type(value: onnx.ValueInfoProto, where: str, *, required: bool) -> None:
    """Refuse a value of no type (where one is required), of an unknown one, or of impossible sizes."""
    check_text((value.name, value.doc_string), where)
    kind = value.type.WhichOneof("value")
    if kind is None and required:
        raise InvalidModel("has no type", where=where, remedy="export the model again")
    check_type_proto(value.type, where)


def check_type_proto(proto: onnx.TypeProto, where: str) -> None:
    """Check a tensor type, or the type inside a sequence or an optional."""
    match proto.WhichOneof("value"):
        case "tensor_type":
            element_type(proto.tensor_type.elem_type, where)
            check_shape(proto.tensor_type.shape, where)
        case "sparse_tensor_type":
            element_type(proto.sparse_tensor_type.elem_type, where)
            check_shape(proto.sparse_tensor_type.shape, where)
        case "sequence_type":
            check_type_proto(proto.sequence_type.elem_type, where)
        case "optional_type":
            check_type_proto(proto.optional_type.elem_type, where)
        case "map_type" | "opaque_type":
            raise UnsupportedModel("is a map or of an opaque type", where=where, remedy=NO_MAPS)


def check_shape(shape: onnx.TensorShapeProto, where: str) -> None:
    """Refuse negative sizes, but for the -1 by which some exporters mean `unknown`: that becomes unknown."""
    check_text((dim.dim_param for dim in shape.dim), where)
    for dim in shape.dim:
        if dim.HasField("dim_value") and dim.dim_value == -1:
            dim.ClearField("dim_value")
        if dim.dim_value < 0 or dim.dim_value > LARGEST:
            raise InvalidModel(f"has the impossible size {dim.dim_value}", where=where, remedy=AGAIN)
