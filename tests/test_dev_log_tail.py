"""What `payloops dev` shows of the logs of its processes."""

from pathlib import Path

import pytest

from payloops.dev.log_tail import LogTail, shortened


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "2026-11-23T16:44:05.123456Z [warning  ] temporal.unavailable         address=h:1 process=worker",
            "16:44:05 worker     temporal.unavailable address=h:1",
        ),
        (
            "2026-11-23T16:44:05.123456Z [warning  ] error connecting in 'payloops api': refused process=worker",
            "16:44:05 worker     error connecting in 'payloops api': refused",
        ),
        (
            "2026-11-23 16:44:05 [error    ] connect to host=db failed    process=worker reason='no such host'",
            "16:44:05 worker     connect to host=db failed reason=no such host",
        ),
        (
            "2026-11-23T16:44:05Z [error    ] Task exception was never retrieved",
            "16:44:05 worker     Task exception was never retrieved",
        ),
        ("Traceback (most recent call last):", "worker     Traceback (most recent call last):"),
    ],
)
def test_a_line_is_shown_whole(line: str, shown: str) -> None:
    assert shortened(line, name="worker") == shown


def test_a_request_is_shown_in_short() -> None:
    line = (
        "2026-11-23T16:44:05Z [info     ] http.request                   correlation_id=1 method=GET"
        " milliseconds=4.4 process=api remote=127.0.0.1 route=/health status=200"
    )
    assert shortened(line, name="api") == "16:44:05 api        GET /health → 200 in 4.4 ms"
    unknown = line.replace("route=/health status=200", "route=None status=404")
    assert shortened(unknown, name="api") == "16:44:05 api        GET (no such path) → 404 in 4.4 ms"


WARNING = "2026-11-23T16:44:05Z [warning  ] temporal.unavailable\n"
INFO = "2026-11-23T16:44:05Z [info     ] worker.started\n"
SHOWN = ("16:44:05 worker     temporal.unavailable", "yellow")


def test_what_matters_in_a_log_is_shown_whole_and_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = LogTail(name="worker", path=log)
    assert tail.lines() == []  # it does not exist yet

    def written(text: str) -> list[tuple[str, str]]:
        with log.open("a") as file:
            file.write(text)
        return tail.lines()

    assert written(f"{INFO}of no interest\n{WARNING}Trace") == [SHOWN]
    assert written("back: of the warning\n") == [("worker     Traceback: of the warning", "")]
    assert written(INFO) == []
    assert written("payloops: METRICS_PORT: port 1 is taken\n") == [
        ("worker     payloops: METRICS_PORT: port 1 is taken", "yellow")
    ]
    with log.open("a") as file:
        file.write(WARNING)  # the last before it died
    tail.from_offset(log.stat().st_size)
    assert written(WARNING + "half a l") == [SHOWN, SHOWN]
    log.write_text(INFO + WARNING)
    tail.from_offset(0)
    assert tail.lines() == [SHOWN]
    with log.open("a") as file:
        file.write(INFO)
    assert tail.lines(chatty=True) == [("16:44:05 worker     worker.started", "dim")]
