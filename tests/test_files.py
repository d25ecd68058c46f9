"""Private files are written whole or not at all."""

import resource
from pathlib import Path

import pytest

from payloops.files import write_private


def test_a_file_that_cannot_be_written_whole_leaves_the_one_before_it_and_nothing_else(
    tmp_path: Path,
) -> None:
    path = tmp_path / "evidence.json"
    write_private(path, "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_private(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"evidence.json": "before"}
