"""What long operations say of their progress where there is no terminal."""

import pytest

from payloops.progress import progress


def test_the_end_of_a_step_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        for done in (0, 10, 10, 10):
            report("events", done, 10)
        for done in (0, 4, 4):
            report("indexes", done, 4)
        report("comparing", 0, 0)
    lines = [line.split(",", maxsplit=1)[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        *("events: 0 of 10", "events: 10 of 10"),
        *("indexes: 0 of 4", "indexes: 4 of 4"),
        "comparing: 0",
    ]
