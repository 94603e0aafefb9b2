"""Where inference takes the shape of one branch, or of the first round of a loop, for that of all; types of states."""

from itertools import chain

import onnx_ir as ir

from bevel.ir.canonical.dead import subgraphs


def type_states(model: ir.Model) -> None:
    """Say which states of loops are sequences or optional, where files leave their types to be inferred.

    Inference takes the type of what they hold for theirs.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if (node.domain, node.op_type) != ("", "Loop"):
            continue
        starts, inside, _ = states(node)
        for start, value in zip(starts, inside, strict=False):
            if start is not None and value is not None and value.type is None:
                value.type = _holding(start)


def _holding(value: ir.Value) -> ir.TypeProtocol | None:
    """Return the type of a value that is no tensor: as it is declared, or as an empty sequence is made."""
    maker = value.producer()
    if value.type is None and maker is not None and (maker.domain, maker.op_type) == ("", "SequenceEmpty"):
        return ir.SequenceType(ir.TensorType(ir.DataType(maker.attributes.get_int("dtype", ir.DataType.FLOAT))))
    return value.type if isinstance(value.type, ir.SequenceType | ir.OptionalType) else None


def doubtful_values(graph: ir.Graph) -> set[ir.Value]:
    """Give the values whose inferred shape may be wrong at times: of branches that differ, of loops that grow."""
    doubtful: set[ir.Value] = set()
    collect(graph, doubtful)
    return doubtful


def collect(graph: ir.Graph, doubtful: set[ir.Value]) -> None:
    """Walk a graph in order, and doubt what follows from what is doubtful."""
    for node in graph:
        inner = subgraphs(node)
        steady = all(map(agree, *states(node))) if inner else True
        for subgraph in inner:
            if not steady:
                doubtful.update(subgraph.inputs)
            collect(subgraph, doubtful)
        given = chain(node.inputs, *(subgraph.outputs for subgraph in inner))
        if not steady or any(value in doubtful for value in given):
            doubtful.update(node.outputs)


def states(node: ir.Node) -> tuple[list[ir.Value | None], ...]:
    """Give lists of values, the places of which must have equal shapes for inference to be right."""
    graphs = subgraphs(node)
    if node.domain == "" and node.op_type == "Loop":
        count = len(node.inputs) - 2
        body = graphs[0]
        return list(node.inputs[2:]), list(body.inputs[2:]), list(body.outputs[1 : 1 + count])
    if node.domain == "" and node.op_type == "Scan":
        body = graphs[0]
        count = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
        return list(node.inputs[:count]), list(body.inputs[:count]), list(body.outputs[:count])
    return tuple(list(graph.outputs) for graph in graphs)


def agree(*values: ir.Value | None) -> bool:
    """Tell whether all values are there and have one shape, be it unknown."""
    shapes = [value.shape if value is not None else None for value in values]
    return all(shape == shapes[0] for shape in shapes)
