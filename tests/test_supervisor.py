"""The screen of `payloops dev`: what it makes of the lines that its processes write."""

import pytest

from payloops.supervisor import shortened


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
