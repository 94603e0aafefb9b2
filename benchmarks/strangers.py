"""Every network of the test zoo, in every export style, after everything other tools may have done to it.

    python benchmarks/strangers.py [--only TEXT]

Prints what was not optimized and verified, and counts by change. A refusal is a `BevelError`; anything else is a bug.
"""

import argparse
import logging
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bevel.errors import BevelError, PassFailed, PromiseBroken, RuleError
from tests import zoo
from tests.test_strangers import CHANGES, optimized

# What the tests skip: networks that the other tool does not convert.
Skipped: type[BaseException] = pytest.skip.Exception
BUGS = (PromiseBroken, PassFailed, RuleError)


def outcome(name: str, style: str, change: str) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            optimized(name, style, change, Path(folder))
        except BUGS as error:
            return "broken", str(error)
        except BevelError as error:
            return "refused", str(error)
        except Skipped:
            return "not made", ""
        return "verified", ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    for change in CHANGES:
        counts = Counter[str]()
        for name in zoo.NAMES:
            for style in zoo.STYLES:
                if arguments.only not in f"{change}:{name}:{style}":
                    continue
                result, why = outcome(name, style, change)
                counts[result] += 1
                if why:
                    print(f"{result:<8} {change}:{name}:{style} {why}", flush=True)
        print(f"{change:<17}", dict(counts), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    np.seterr(all="ignore")
    main()
