"""What the garbage collector leaves alone, and that it goes on with the rest."""

import gc
import weakref

import pytest

from qlab.memory import settled


class Ring:
    """Holds itself, so that only the collector can take it away."""

    def __init__(self) -> None:
        self.me = self


def test_what_is_made_within_is_collected_and_what_was_there_is_left() -> None:
    gc.collect()
    gc.disable()  # a collection of its own between two lines would decide this test
    try:
        old = weakref.ref(Ring())
        with settled():
            new = weakref.ref(Ring())
            gc.collect()
            assert new() is None
            assert old() is not None
        gc.collect()
        assert old() is None
    finally:
        gc.enable()


def test_the_innermost_does_not_end_it_for_the_others() -> None:
    assert gc.get_freeze_count() == 0
    with settled():
        with pytest.raises(KeyError), settled():
            raise KeyError
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
