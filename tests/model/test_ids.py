"""Identifiers are short, readable, and never the same twice."""

import uuid
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.model import ids
from model.strategies import QUICK

sweep_ids = st.text(ids.ALPHABET, min_size=ids.ID_LENGTH, max_size=ids.ID_LENGTH)
indices = st.integers(0, ids.ID_COUNT - 1)
#: From 1970 to the year 10889, where the 48 bits of milliseconds end.
moments = st.floats(0.0, 2**48 / 1000 - 1)


def is_spelled_right(identifier: str) -> bool:
    return len(identifier) == 5 and set(identifier) <= set("0123456789abcdefghjkmnpqrstvwxyz")


def test_the_alphabet_has_no_letters_that_are_misread():
    assert len(set(ids.ALPHABET)) == 32
    assert not set(ids.ALPHABET) & set("ilou")


def test_a_sweep_id_has_five_characters_of_the_alphabet():
    assert all(is_spelled_right(ids.new_sweep_id()) for _ in range(1000))


def test_sweep_ids_are_spread_over_the_whole_alphabet():
    drawn = [ids.new_sweep_id() for _ in range(1000)]
    for position in range(ids.ID_LENGTH):
        assert len({identifier[position] for identifier in drawn}) > 25  # fewer come by a chance below 1e-100


@QUICK
@given(sweep=sweep_ids, index=indices)
def test_a_run_id_has_five_characters_of_the_alphabet(sweep, index):
    assert is_spelled_right(ids.run_id(sweep, index))


@QUICK
@given(sweep=sweep_ids, index=indices)
def test_a_run_id_comes_out_the_same_every_time(sweep, index):
    assert ids.run_id(sweep, index) == ids.run_id(sweep, index)


def test_run_ids_are_the_same_in_every_version():
    """A controller that is upgraded in the middle of a sweep must come to the ids that its log has."""
    assert [ids.run_id("46g3f", index) for index in range(4)] == ["zgsar", "605d9", "dfgft", "myvhb"]


@pytest.mark.parametrize("sweep", ["46g3f", "00000"])
def test_two_hundred_thousand_runs_of_one_sweep_have_as_many_ids(sweep):
    assert len({ids.run_id(sweep, index) for index in range(200_000)}) == 200_000


@QUICK
@given(sweep=sweep_ids, picks=st.lists(indices, min_size=2, max_size=50, unique=True))
def test_run_ids_never_collide_however_far_apart_their_indices(sweep, picks):
    assert len({ids.run_id(sweep, index) for index in picks}) == len(picks)


@QUICK
@given(sweep=sweep_ids, start=st.integers(0, 1000))
def test_thirty_two_neighbours_differ_in_their_first_character(sweep, start):
    assert len({ids.run_id(sweep, index)[0] for index in range(start, start + 32)}) == 32


def test_sweeps_give_their_runs_different_ids():
    assert len({ids.run_id(sweep, 0) for sweep in ("46g3f", "46g3g", "56g3f", "abcde")}) == 4


@pytest.mark.parametrize("index", [-1, ids.ID_COUNT])
def test_an_index_without_an_id_is_refused(index):
    with pytest.raises(ValueError, match=rf"run index must be in \[0, 33554432\), got {index}"):
        ids.run_id("46g3f", index)


def test_a_job_id_names_run_type_and_attempt():
    assert ids.job_id("46g3f", "train", 2) == "46g3f.train.2"


@QUICK
@given(at=moments)
def test_an_event_id_is_a_uuid_of_version_7_that_holds_its_millisecond(at):
    text = ids.new_event_id(at)
    identifier = uuid.UUID(text)
    assert text == str(identifier)
    assert identifier.version == 7
    assert identifier.variant == uuid.RFC_4122
    assert identifier.int >> 80 == int(at * 1000)


def test_event_ids_of_one_moment_are_unique():
    assert len({ids.new_event_id(1_700_000_000.0) for _ in range(20_000)}) == 20_000


@QUICK
@given(milliseconds=st.lists(st.integers(0, 2**47), min_size=2, max_size=20, unique=True))
def test_event_ids_of_different_milliseconds_sort_by_time(milliseconds):
    # Half a millisecond keeps clear of how a float rounds the product with 1000.
    identifiers = [ids.new_event_id((moment + 0.5) / 1000) for moment in sorted(milliseconds)]
    assert all(earlier < later for earlier, later in pairwise(identifiers))
