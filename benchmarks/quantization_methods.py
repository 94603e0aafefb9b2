"""What is compared: recipes of Bevel, and methods of other tools.

What leaves as codes and tables (learnt levels, directions, NF4) is small in the file alone; the speeds say so. Half the
block takes as many bits as ONNX Runtime's HQQ, which has a float zero point in each. Branches have a rank of 8, in half
precision, which is in the bits. With made-up inputs there is no data: they are made from the model's signature, and are
text in its own words for a language model. `mixed` has weights of 2, 4 and 8 bits, as many in the mean as one format
would take.
"""

from dataclasses import dataclass

BEVEL = "bevel"
ALL = (2, 3, 4, 8)


@dataclass(frozen=True)
class Method:
    """What a method is to be asked for, whether it looks at data, and the widths that it has."""

    recipe: str = ""
    calibrated: bool = False
    bits: tuple[int, ...] = ALL


def quantized(options: str) -> str:
    return f"quantize-blocks{{{options} block=BLOCK only=ONLY}}"


AWQ = "awq{format=uintBITS block=BLOCK},"
LEARNT = (2, 3, 4)
OURS = {
    "nearest": Method(quantized("format=intBITS")),
    "nearest, zero points": Method(quantized("format=uintBITS")),
    "clip": Method(quantized("format=uintBITS rounding=clip")),
    "hqq": Method(quantized("format=uintBITS rounding=hqq")),
    "clip, half the block": Method("quantize-blocks{format=intBITS rounding=clip block=HALF only=ONLY}"),
    "nf4": Method(quantized("format=nf4 rounding=clip"), bits=(4,)),
    "kmeans": Method(quantized("format=kmeansBITS rounding=clip"), bits=LEARNT),
    "kmeans, half the block": Method(
        "quantize-blocks{format=kmeansBITS rounding=clip block=HALF only=ONLY}", bits=LEARNT
    ),
    "mixture of Gaussians": Method(quantized("format=dgmsBITS rounding=clip"), bits=LEARNT),
    "pyramid": Method(quantized("format=pvqBITS"), bits=LEARNT),
    "clip, lorc": Method(quantized("format=uintBITS rounding=clip branch=lorc")),
    "clip, svdquant": Method(quantized("format=uintBITS rounding=clip branch=svdquant")),
    "gptq, made-up inputs": Method(quantized("format=uintBITS rounding=gptq")),
    "cbq, made-up inputs": Method(quantized("format=uintBITS rounding=cbq")),
    "awq, clip": Method(AWQ + quantized("format=uintBITS rounding=clip"), True),
    "gptq": Method(quantized("format=uintBITS rounding=gptq"), True),
    "awq, gptq": Method(AWQ + quantized("format=uintBITS rounding=gptq"), True),
    "adaround": Method(quantized("format=uintBITS rounding=adaround"), True),
    "cbq": Method(quantized("format=uintBITS rounding=cbq"), True),
    "kmeans, gptq": Method(quantized("format=kmeansBITS rounding=gptq"), True, LEARNT),
    "gptq, lorc": Method(quantized("format=uintBITS rounding=gptq branch=lorc metric=inputs"), True),
    "mixed, gptq": Method(quantized("formats=uint2,uint4,uint8 bits=MEAN rounding=gptq"), True, LEARNT),
}
RUNTIME = "onnxruntime"
THEIRS = {
    RUNTIME: {
        "nearest": Method(bits=(2, 4, 8)),
        "nearest, zero points": Method(bits=(2, 4, 8)),
        "k-quant": Method(bits=(4,)),
        "hqq": Method(bits=(4,)),
        "gptq": Method(calibrated=True, bits=(4,)),
        "dynamic int8": Method(bits=(8,)),
        "static int8": Method(calibrated=True, bits=(8,)),
    },
    "neural-compressor": {
        "nearest": Method(),
        "nearest, zero points": Method(),
        "gptq": Method(calibrated=True),
        "awq": Method(calibrated=True),
    },
    "olive": {
        "nearest": Method(bits=(4, 8)),
        "nearest, zero points": Method(bits=(4, 8)),
        "k-quant": Method(bits=(4, 8)),
    },
    "quark": {
        "nearest": Method(bits=(4,)),
        "nearest, zero points": Method(bits=(4,)),
        "hqq": Method(bits=(4,)),
        "gptq": Method(calibrated=True, bits=(4,)),
    },
}


def recipe(method: str, bits: int, block: int) -> str:
    """Return what one of ours is asked for; the names of layers stand in the place of `ONLY` later."""
    given = {"BITS": bits, "BLOCK": block, "HALF": block // 2, "MEAN": bits + (32 + bits) / block}
    text = OURS[method].recipe
    for name, number in given.items():
        text = text.replace(name, f"{number:g}")
    return text
