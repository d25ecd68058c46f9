"""What is random is given once."""

import os
from concurrent.futures import ThreadPoolExecutor

from uuid_utils.compat import uuid7

from payloops.events.randomness import BUFFERED, LENGTH, random_bytes

MANY = 10 * BUFFERED


def test_nobody_gets_what_another_got() -> None:
    with ThreadPoolExecutor(8) as threads:
        drawn = [*threads.map(lambda _: random_bytes(), range(MANY))]
    assert {len(each) for each in drawn} == {LENGTH}
    assert len({*drawn}) == MANY


def test_a_process_that_was_forked_gets_others() -> None:
    random_bytes()  # there are more ahead now
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"".join(random_bytes() for _ in range(BUFFERED)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        drawn = pipe.read()
    os.waitpid(child, 0)
    theirs = {drawn[start : start + LENGTH] for start in range(0, len(drawn), LENGTH)}
    assert len(theirs) == BUFFERED
    assert theirs.isdisjoint({random_bytes() for _ in range(2 * BUFFERED)})


def test_processes_that_were_forked_make_other_ids() -> None:
    uuid7()  # what follows from this would be the same in each of them
    reading, writing = os.pipe()
    for _ in range(2):
        child = os.fork()
        if not child:
            os.write(writing, uuid7().bytes)
            os._exit(0)
        os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        first, second = pipe.read(16), pipe.read(16)
    assert first[8:] != second[8:]  # the rest is the time
