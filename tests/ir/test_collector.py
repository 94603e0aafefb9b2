"""The garbage collector is left as it was found, whatever happens between."""

import gc

import pytest

from bevel.ir.collector import resting, sparing_the_old


def test_rests_and_goes_on() -> None:
    with pytest.raises(RuntimeError), resting():
        assert not gc.isenabled()
        raise RuntimeError
    assert gc.isenabled()


def test_stays_off_for_who_turned_it_off() -> None:
    gc.disable()
    try:
        with resting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_objects_of_before_are_spared_and_given_back() -> None:
    before = [[] for _ in range(100)]
    with pytest.raises(RuntimeError), sparing_the_old():
        assert gc.get_freeze_count() > len(before)
        raise RuntimeError
    assert gc.get_freeze_count() == 0


def test_what_a_caller_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with sparing_the_old():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
