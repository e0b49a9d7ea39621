"""Which task of a cluster is next: who waits for a state, who learns it, and who tries when that failed."""

from __future__ import annotations

from gitbench.run.schedule import Schedule
from results import CASE


def test_who_needs_a_state_waits_for_the_one_that_learns_it() -> None:
    there: set[str] = set()
    schedule = Schedule(lambda name: name in there)
    first, second, other = (CASE.model_copy(update={"seed": seed}) for seed in range(3))
    for one in (first, second, other, first):
        schedule.add(one, "run")
    jobs = [schedule.next() for _ in range(3)]
    assert not schedule.ready
    schedule.lacks(jobs[0], ["a", "b"])
    schedule.lacks(jobs[1], ["b"])
    learning = {job.learns: job for job in (schedule.next(), schedule.next())}
    assert learning.keys() == {"a", "b"}
    assert not schedule.ready
    there.add("b")
    schedule.learned("b")
    assert schedule.next() is jobs[1]
    assert not schedule.ready  # the first lacks the other one still
    schedule.not_learned(learning["a"], by_itself=True)
    assert schedule.next() is jobs[0]
    assert (jobs[0].own, list(jobs[0].states)) == ({"a"}, ["b"])
    schedule.lacks(jobs[2], ["b"])
    assert schedule.next() is jobs[2]  # it is there


def test_a_state_that_one_could_not_learn_is_tried_by_the_next() -> None:
    schedule = Schedule(lambda name: False)
    cases = [CASE.model_copy(update={"seed": seed}) for seed in range(2)]
    for one in cases:
        schedule.add(one, "run")
    jobs = [schedule.next(), schedule.next()]
    for job in jobs:
        schedule.lacks(job, ["a"])
    late = schedule.next()
    schedule.not_learned(late, by_itself=False)
    schedule.done(late.key)
    again = schedule.next()
    assert (again.learns, again.origin) == ("a", jobs[1])
    assert not schedule.ready
    assert schedule.given_up(again) == [jobs[1].key]
    assert len(schedule) == 0
