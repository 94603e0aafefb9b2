import json
import math

import pytest

from bevel.budget import Budget
from bevel.errors import UsageError
from bevel.ir.cost import Cost
from bevel.passes.base import Preserving
from bevel.passes.verify import Deviation, Verdict
from bevel.report import Deployment, Report, Step

WORST = Deviation("y", False, 0.5, math.inf, -math.inf, 0.0, note="shape [2], not [3]")
VERDICT = Verdict(Preserving(), (WORST,), 4)
BEFORE, AFTER = Cost(1000, 4000, 2_000_000), Cost(500, 2000, 1_000_000, uncounted=2)
REPORT = Report(
    BEFORE,
    AFTER,
    (
        Step("fold", "Preserving 1e-05", VERDICT, AFTER, 0.01, 0.2, ("2 folded",)),
        Step("a|b", "Exact", None, AFTER, 2.0),
    ),
    error=0.01,
    deployment=Deployment(2.0, 1.0, 0.5),
    inputs="4 inputs (made-up inputs)",
)


def test_json_is_strict_and_complete():
    data = json.loads(REPORT.json(), parse_constant=pytest.fail)
    assert data["deployment"] == {"latency_before": 2.0, "latency_after": 1.0, "drift": 0.5}
    assert data["passes"][0]["verdict"]["outputs"][0]["error"] == "inf"
    assert data["passes"][1]["verdict"] is None
    assert data["after"] == {"parameters": 500, "bytes": 2000, "macs": 1_000_000, "uncounted": 2}


def test_the_table_has_a_row_per_pass_and_the_totals():
    rows = REPORT.rows()
    assert [row[0] for row in rows] == ["input", "fold", "a|b", "total"]
    assert rows[-1][2:6] == ("1.0e-02", "0.50x", "0.50x", "0.50x")
    assert rows[1][2] == "inf"
    assert rows[2][2] == "-"


def test_remarks_say_what_the_figures_do_not():
    assert REPORT.remarks() == [
        "verified on 4 inputs (made-up inputs)",
        "latency 2 ms -> 1 ms (0.50x)",
        "ONNX Runtime's own optimizations change the result: error 5.0e-01",
        "MACs of 2 nodes are not counted: their shapes are unknown",
        "fold: 2 folded",
        "fold: output y: shape [2], not [3]",
    ]


def test_markdown_is_one_table_whatever_the_names():
    lines = REPORT.markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 6
    assert all(line.replace("\\|", "").count("|") == 8 for line in table)


def test_the_text_fits_a_terminal():
    assert max(map(len, str(REPORT).splitlines())) <= 120


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("size=0.5x", True),
        ("size=0.49x", False),
        ("size=2kB", True),
        ("size=1999B", False),
        ("parameters=500", True),
        ("parameters=0.4k", False),
        ("macs=1M", True),
        ("error=0.01", True),
        ("error=1e-3", False),
        ("latency=0.5x", True),
        ("latency=0.9ms", False),
        ("latency=0.001s", True),
    ],
)
def test_budgets(text, kept):
    line = Budget.parse(text).check(REPORT)
    assert line.kept is kept
    assert ("kept" in str(line)) is kept


@pytest.mark.parametrize(
    "text", ["size", "size=", "size=0.5", "size=-1x", "error=0.5x", "latency=5", "speed=2x", "size=1e3kBx"]
)
def test_what_is_no_budget_is_an_error(text):
    with pytest.raises(UsageError):
        Budget.parse(text)


def test_what_was_not_measured_is_missed():
    unmeasured = Report(BEFORE, AFTER)
    for text in ("error=1", "latency=100x", "latency=1s"):
        line = Budget.parse(text).check(unmeasured)
        assert not line.kept
        assert "not measured" in str(line)
