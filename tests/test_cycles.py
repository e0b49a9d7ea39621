"""While results are read, Python does not search for cycles of objects; afterwards it does again."""

import gc

import pytest

from gitbench.publish.cycles import without_cycle_search


def test_no_search_inside_and_as_before_after():
    assert gc.isenabled()
    with without_cycle_search():
        assert not gc.isenabled()
        with without_cycle_search():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_ends_it_too():
    @without_cycle_search()
    def fail():
        raise ValueError("found inside")

    with pytest.raises(ValueError, match="found inside"):
        fail()
    assert gc.isenabled()
