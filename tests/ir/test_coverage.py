"""Every standard operator up to the newest opset that ONNX Runtime runs is known."""

import onnx

from bevel.ir import control
from bevel.ir import rules as rules
from bevel.ir.coupling import known_rules

NEWEST_OPSET = 26

# Operators of ai.onnx that fix all that touches them.
PINNED = {
    "ConcatFromSequence",
    "ImageDecoder",
    "Optional",
    "OptionalHasElement",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "StringNormalizer",
}


def standard_operators() -> set[str]:
    schemas = onnx.defs.get_all_schemas_with_history()
    return {schema.name for schema in schemas if schema.domain == "" and schema.since_version <= NEWEST_OPSET}


def test_every_standard_operator_has_a_rule_or_a_body():
    known = {name for domain, name in known_rules() if domain == ""} | set(control.BODIES)
    assert len(standard_operators()) > 190
    assert standard_operators() - known == set()


def test_only_these_standard_operators_are_pinned():
    pinned = {name for (domain, name), rule in known_rules().items() if domain == "" and rule.__name__ == "pinned"}
    assert pinned == PINNED


def test_no_rule_is_for_an_operator_that_does_not_exist():
    existing = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    extensions = {"SimplifiedLayerNormalization"}  # ONNX Runtime has it in the standard domain
    assert {name for domain, name in known_rules() if domain == ""} - existing == extensions
