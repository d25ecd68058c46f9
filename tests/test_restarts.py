"""How soon a process that dies is started again."""

from payloops.daemons.restarts import LONGEST_PAUSE, SETTLED, Restarts


def test_pauses_grow_with_each_death_up_to_the_longest_however_many_there_are() -> None:
    restarts = Restarts()
    pauses = [restarts.died(now=1.0) for _ in range(2_000)]
    assert pauses[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert set(pauses[5:]) == {LONGEST_PAUSE}


def test_a_process_is_due_when_the_pause_is_over() -> None:
    restarts = Restarts()
    assert restarts.is_due(now=0.0)
    pause = restarts.died(now=10.0)
    assert not restarts.is_due(now=9.9 + pause)
    assert restarts.is_due(now=10.0 + pause)


def test_deaths_before_a_process_settled_no_longer_count() -> None:
    restarts = Restarts()
    first, second = restarts.died(now=1.0), restarts.died(now=2.0)
    restarts.began(now=10.0)
    assert restarts.died(now=10.1 + SETTLED) == first < second
