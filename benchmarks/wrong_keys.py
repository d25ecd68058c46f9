"""What a flood of wrong API keys does to requests with a right one.

Rounds of a few seconds each, taken in turns, so that all of them see the same machine:

    alone       requests with a right key, one after another, and nothing else
    no key      beside them as many requests a second as below, without any key: what answering 401 costs at all
    made up     with keys of which not even the prefix exists
    guesses     with the right key's own prefix and a wrong rest: these are the ones that reach bcrypt

What counts is the ratio of the last two to `no key`: what a wrong key costs others beyond being a request.
The flood comes from a process of its own. Against a running service on this machine:

    payloops dev                          # in another terminal
    python benchmarks/wrong_keys.py       # --data-dir as there, if one was given
"""

import argparse
import asyncio
import multiprocessing
import random
import string
import time
from collections import Counter
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from payloops.dev.demo_merchant import DemoMerchant, read_demo_merchant

ALPHABET = string.ascii_letters + string.digits
SECRET_LENGTH = 32
IN_FLIGHT = 200
"""Of the flood: what is not answered by then is not sent faster."""
KINDS = ("alone", "no key", "made up", "guesses")


def wrong_key(kind: str, right: str) -> str | None:
    """A key of the flood, another one each time."""
    rest = "".join(random.choices(ALPHABET, k=SECRET_LENGTH))
    match kind:
        case "made up":
            head, _, lookup = right[:-SECRET_LENGTH].rpartition("_")
            return f"{head}_{''.join(random.choices(ALPHABET, k=len(lookup)))}{rest}"
        case "guesses":
            return right[:-SECRET_LENGTH] + rest
        case _:
            return None


def flood(kind: str, merchant: DemoMerchant, rate: float, stop: "Synchronized[int]", answers: Any) -> None:
    """A process: requests at a rate until it is stopped; puts what came back."""
    answers.put(asyncio.run(_flood(kind, merchant, rate, stop)))


async def _flood(kind: str, merchant: DemoMerchant, rate: float, stop: "Synchronized[int]") -> Counter[int]:
    statuses: Counter[int] = Counter()
    places = asyncio.Semaphore(IN_FLIGHT)
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with (
        aiohttp.ClientSession(merchant.url, connector=connector) as session,
        asyncio.TaskGroup() as group,
    ):

        async def one() -> None:
            key = wrong_key(kind, merchant.api_key)
            headers = {"X-API-Key": key} if key is not None else {}
            try:
                async with session.get("/v1/orders", headers=headers) as answer:
                    await answer.read()
                    statuses[answer.status] += 1
            finally:
                places.release()

        due = time.monotonic()
        while not stop.value:
            await places.acquire()
            group.create_task(one())
            due = max(due + 1 / rate, time.monotonic() - 1)
            await asyncio.sleep(max(0, due - time.monotonic()))
    return statuses


async def right_requests(merchant: DemoMerchant, *, seconds: float) -> list[float]:
    """Seconds that each request with the right key took, one after another."""
    times = []
    async with aiohttp.ClientSession(merchant.url, headers={"X-API-Key": merchant.api_key}) as session:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            async with session.get("/v1/orders?limit=1") as answer:
                await answer.read()
                if answer.status != 200:
                    raise SystemExit(f"a request with the right key was answered {answer.status}")
            times.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)
    return times


def one_round(
    kind: str, merchant: DemoMerchant, *, rate: float, seconds: float
) -> tuple[list[float], Counter[int]]:
    if kind == "alone":
        return asyncio.run(right_requests(merchant, seconds=seconds)), Counter()
    context = multiprocessing.get_context("spawn")
    stop, answers = context.Value("i", 0), context.Queue()
    process = context.Process(target=flood, args=(kind, merchant, rate, stop, answers))
    process.start()
    try:
        time.sleep(1.5)  # until it runs
        times = asyncio.run(right_requests(merchant, seconds=seconds))
    finally:
        stop.value = 1
        statuses = answers.get(timeout=60)
        process.join()
    return times, statuses


def at(share: float, times: list[float]) -> float:
    """Milliseconds."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] * 1000


def main(*, data_dir: Path, rounds: int, rate: float, seconds: float) -> None:
    merchant = read_demo_merchant(data_dir=data_dir)
    if merchant is None:
        raise SystemExit(f"no service has run on {data_dir}: start `payloops dev` first")
    asyncio.run(right_requests(merchant, seconds=1.0))
    p50s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    p99s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    came_back: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS}
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        for kind in KINDS:
            times, statuses = one_round(kind, merchant, rate=rate, seconds=seconds)
            p50s[kind].append(at(0.5, times))
            p99s[kind].append(at(0.99, times))
            came_back[kind] += statuses
            counts[kind] += len(times)
    print(
        f"{rounds} rounds of {seconds:g} s each; a flood of {rate:g} requests a second. Medians of the rounds:"
    )
    print(
        f"{'beside':10} {'requests':>8} {'p50 ms':>8} {'p99 ms':>8} {'p50 ratio':>10} {'p99 ratio':>10}  the flood got"
    )
    for kind in KINDS:
        p50, p99 = median(p50s[kind]), median(p99s[kind])
        ratios = (p50 / median(p50s["no key"]), p99 / median(p99s["no key"]))
        said = ", ".join(f"{count} x {status}" for status, count in sorted(came_back[kind].items()))
        print(f"{kind:10} {counts[kind]:8} {p50:8.2f} {p99:8.2f} {ratios[0]:10.2f} {ratios[1]:10.2f}  {said}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path(".payloops"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=200.0, help="requests of the flood, a second")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round")
    given = parser.parse_args()
    main(data_dir=given.data_dir, rounds=given.rounds, rate=given.rate, seconds=given.seconds)
