"""Scans as ONNX Runtime survives them.

Its Scan transposes what it goes through along another axis than the first, and divides by zero, which ends the process,
where that is empty. Transposed before, the same input is refused with a message.
"""

import onnx_ir as ir


def transposed_first(model: ir.Model) -> ir.Model:
    """Return a copy of a model in which every Scan goes along first axes, or the model itself if it has no other."""
    if not any(_other_axes(node) for node in ir.traversal.RecursiveGraphIterator(model.graph)):
        return model
    copy = model.clone()
    for node in list(ir.traversal.RecursiveGraphIterator(copy.graph)):
        if axes := _other_axes(node):
            for place, axis in axes.items():
                _transpose(node, place, axis)
            del node.attributes["scan_input_axes"]
    return copy


def _other_axes(node: ir.Node) -> dict[int, int]:
    """Return the axes other than the first that a Scan goes along, by input; none where a rank is unknown."""
    if (node.domain, node.op_type) != ("", "Scan") or "scan_input_axes" not in node.attributes:
        return {}
    axes = node.attributes["scan_input_axes"].as_ints()
    places = range(len(node.inputs) - len(axes), len(node.inputs))
    shapes = [value.shape if (value := node.inputs[place]) is not None else None for place in places]
    if not all(shape is not None and len(shape) for shape in shapes):
        return {}
    found = {place: axis % len(shape) for place, axis, shape in zip(places, axes, shapes, strict=True) if shape}
    return {place: axis for place, axis in found.items() if axis}


def _transpose(node: ir.Node, place: int, axis: int) -> None:
    """Have a node read one of its inputs with some axis in front."""
    value = node.inputs[place]
    if value is None or value.shape is None or node.graph is None:
        return
    order = [axis, *(other for other in range(len(value.shape)) if other != axis)]
    front = ir.node("Transpose", [value], {"perm": order})
    node.graph.insert_before(node, front)
    node.replace_input_with(place, front.outputs[0])
