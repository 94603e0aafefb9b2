"""`bevel to-torch`: a model as Python source and weights."""

from bevel.commands.files import read, say
from bevel.modules import to_torch
from bevel.writing import module_files


def run(*, model: str, output: str, calibration: str | None, verify: bool, seed: int) -> None:
    """Carry out the command; where the files go is checked before the model is read."""
    module_files(output)
    module = to_torch(read(model), verify=verify, calibration=calibration, seed=seed)
    module.write(output)
    count = sum(parameter.numel() for parameter in module.parameters())
    say(f"{output}: {count} parameters" + (", verified in ONNX Runtime" if verify else ", not verified"))
