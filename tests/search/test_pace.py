"""Pace: what is left out of it, and what stands in for what was not timed yet."""

from pack.search.pace import Pace, Rate


def test_the_first_timing_counts_for_nothing_once_there_is_another() -> None:
    rate = Rate()
    assert rate.mean is None
    rate.add(1, 9.0)
    rate.add(0, 1.0)  # what belongs to it
    assert rate.first == 10.0 and rate.mean is None
    rate.add(4, 2.0)
    rate.add(0, 1.0)  # what belongs to those
    assert rate.mean == 0.75


def test_rows_of_every_size_have_a_pace_of_their_own_by_their_pixels_at_first() -> None:
    pace = Pace(look_cost=2.0)
    assert pace.forward() == pace.forward(4) == pace.look == pace.ending == 0
    pace.forwarded(10, 5.0, 1)
    assert pace.forward() == 0.5 and pace.forward(2) == 0.125
    pace.forwarded(10, 4.0, 2)
    assert pace.forward() == 0.5 and pace.forward(2) == 0.4 and pace.forward(4) == 0.03125


def test_a_look_is_guessed_until_two_were_timed_and_what_one_kind_loaded_is_not_in_the_other() -> None:
    pace = Pace(look_cost=2.0)
    pace.forwarded(10, 5.0, 1)
    pace.endings.add(1, 30.0)  # loads a network
    assert pace.look == pace.ending == 1.0  # two forwards
    pace.looks.add(1, 0.25)
    assert pace.look == pace.ending == 0.25
    pace.endings.add(2, 1.0)
    assert pace.look == pace.ending == 0.5
    pace.looks.add(2, 0.8)
    assert pace.look == 0.4 and pace.ending == 0.5
