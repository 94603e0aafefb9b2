"""Whether what runs models has a kernel that attends to codes: older versions of ONNX Runtime have none."""

from typing import Final

import onnx_ir as ir

from bevel.errors import EditRefused, UnsupportedModel
from bevel.passes.base import Runtime

ONE_HEAD: Final = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
probe (float[1, 1, 8] x, int8[1, 1, p, 8] k, int8[1, 1, p, 8] v, int32[1] last, int32 total, float[1] scale)
  => (float[1, 1, 8] y, int8[1, 1, t, 8] keys, int8[1, 1, t, 8] values) {
  y, keys, values = com.microsoft.GroupQueryAttention
    <num_heads = 1, kv_num_heads = 1, kv_cache_bit_width = 8, k_quant_type = "PER_TENSOR", v_quant_type = "PER_TENSOR">
    (x, x, x, k, v, last, total, , , , , , scale, scale)
}
"""


def check_kernel(runtime: Runtime) -> None:
    """Raise `EditRefused` if there is no such kernel, by loading a model of one node."""
    try:
        with runtime.open(ir.from_onnx_text(ONE_HEAD)):
            return
    except UnsupportedModel as error:
        raise EditRefused(
            f"GroupQueryAttention with caches in codes {error.what}",
            where="quantize-cache",
            remedy="take a newer version, or emit=portable",
        ) from error
