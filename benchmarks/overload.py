"""What becomes of the service when twice as many requests arrive as it can answer, and of its memory in the long run.

Orders are created through one API process, on servers of its own:

    filled      over 64 connections, as fast as they are answered, for a minute; the first orders are the fastest,
                because indexes are small and PostgreSQL has made no checkpoint yet
    saturated   the same: the peak
    before      half of the peak, at a fixed rate, regardless of the answers
    overloaded  twice the peak, for two minutes
    after       half of the peak again: how soon it is as before
    saturated   the peak once more, as a store with more orders, or a machine with other users, is slower by then
    soak        a third of the peak for twenty minutes; memory is read after each of its parts

    make bench ARGS=overload
    .venv/bin/python benchmarks/overload.py --soak-seconds 0      # without the soak
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, repeat
from statistics import median
from typing import Any

import figures
import load
from measured_service import measured_service
from process_usage import cpu_seconds, memory_of, run

ORDER = {"amount": 4_999, "currency": "USD", "customerEmail": "ada@example.com", "metadata": {"cart": "7"}}
SATURATING_CONNECTIONS = 64
MOST_CONNECTIONS = 4_000
CREATED, UNAVAILABLE = 201, 503
PROMPTLY = 0.1
"""Seconds within which a request has to be refused."""
RECOVERED_FACTOR = 2.0
"""In a second that is as before, no order takes longer than this multiple of the former p99."""
RECOVERED_SECONDS = 10
"""The service has recovered when this many seconds in a row are as before: single ones are late without an overload
as well, when the disk is slow to sync."""
SOAK_PARTS = 60
SOAK_WARM_UP = 10
"""Parts before memory is compared: caches and pools fill up in them."""
COMPARED_PARTS = 10
"""The median of this many parts at the beginning is compared with the median of as many at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Seconds of each phase."""

    filled: float
    saturated: float
    calm: float
    overloaded: float
    soak: float


class Cores:
    """How many cores each process uses, the driver included."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._before = self._used()

    def _used(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self._pids.items()}

    def since(self, done: load.Load) -> dict[str, float]:
        """Cores in use on average during a load that began when this was made, by process."""
        used = {name: now - self._before[name] for name, now in self._used().items()} | {"driver": done.cpu}
        return {name: round(each / done.seconds, 2) for name, each in used.items()}


def measure(plan: Plan) -> dict[str, Any]:
    with measured_service() as service:
        merchant = service.merchant_with_orders(0)
        headers = {"X-API-Key": merchant.api_key}
        request = load.request_bytes("POST", "/v1/orders", headers=headers, body=json.dumps(ORDER).encode())
        with service.projector() as projector, service.api(workers=1) as (api, port):
            pids = {"api": api.pid, "postgres": service.postmaster, "projector": projector.pid}
            first = saturate(port, request, seconds=plan.saturated)
            filled = saturate(port, request, seconds=plan.filled)
            cores = Cores(pids)
            saturated = saturate(port, request, seconds=plan.saturated)
            peak, at_peak = created_per_second(saturated), cores.since(saturated)
            before = drive(port, request, rate=peak / 2, seconds=plan.calm)
            cores = Cores(pids)
            overloaded = drive(port, request, rate=peak * 2, seconds=plan.overloaded)
            in_overload = cores.since(overloaded)
            after = drive(port, request, rate=peak / 2, seconds=plan.calm)
            again = saturate(port, request, seconds=plan.saturated)
            bad_after = refused_or_late(after, before=before)
            peak_after = created_per_second(again)
            found = {
                "first_orders_per_second": round(created_per_second(first)),
                "orders_at_the_peak": sum(len(each.took(CREATED)) for each in (first, filled)),
                "peak_per_second": round(peak),
                "peak_after_per_second": round(peak_after),
                "cores_at_peak": at_peak,
                "before": times(before, CREATED),
                "overloaded": overload(overloaded, peak=peak, peak_after=peak_after, seconds=plan.overloaded),
                "cores_in_overload": in_overload,
                "seconds_refused_or_late": {
                    "before": refused_or_late(before, before=before),
                    "after": bad_after,
                },
                "recovered_after_seconds": recovered_after(bad_after, seconds=plan.calm),
            }
            if plan.soak:
                service.wait_for_projections()
                found["soak"] = soak(api.pid, port, request, rate=peak / 3, seconds=plan.soak)
    return found


def saturate(port: int, request: bytes, *, seconds: float) -> load.Load:
    """Create orders as fast as they are answered; single ones may be refused."""
    return load.closed(port, repeat(request), connections=SATURATING_CONNECTIONS, seconds=seconds)


def drive(port: int, request: bytes, *, rate: float, seconds: float) -> load.Load:
    return load.arrivals(port, request, rate=rate, seconds=seconds, connections=MOST_CONNECTIONS)


def created_per_second(done: load.Load) -> float:
    return len(done.took(CREATED)) / done.seconds


def times(done: load.Load, status: int) -> dict[str, Any]:
    took = done.took(status)
    if not took:
        return {"count": 0}
    return {
        "count": len(took),
        "p50_ms": round(figures.percentile(took, 0.5), 1),
        "p99_ms": round(figures.percentile(took, 0.99), 1),
    }


def overload(done: load.Load, *, peak: float, peak_after: float, seconds: float) -> dict[str, Any]:
    """What became of the requests at twice the peak."""
    in_time = sum(status == CREATED and due + took <= seconds for due, status, took in done.seen)
    refused = done.took(UNAVAILABLE)
    return {
        "arrived_per_second": round((done.answers + done.lost + done.unsent) / seconds),
        "created_per_second": round(in_time / seconds),
        "goodput_share_of_peak": round(in_time / seconds / peak, 3),
        "goodput_share_of_peak_after": round(in_time / seconds / peak_after, 3),
        "created": times(done, CREATED),
        "refused": times(done, UNAVAILABLE),
        "refused_promptly_share": round(sum(took <= PROMPTLY for took in refused) / max(1, len(refused)), 4),
        "other_answers": done.answers - len(refused) - len(done.took(CREATED)),
        "lost": done.lost,
        "unsent": done.unsent,
        "driver_cpu_share": round(done.cpu / done.seconds, 2),
    }


def refused_or_late(done: load.Load, *, before: load.Load) -> list[int]:
    """The seconds, from the beginning, in which an order was refused or took longer than allowed."""
    allowed = max(PROMPTLY, RECOVERED_FACTOR * figures.percentile(before.took(CREATED), 0.99) / 1_000)
    return sorted({int(due) for due, status, took in done.seen if status != CREATED or took > allowed})


def recovered_after(bad: list[int], *, seconds: float) -> int | None:
    """Seconds after which it is as before for `RECOVERED_SECONDS`; None if that is never the case."""
    return next(
        (
            earlier + 1
            for earlier, later in pairwise([-1, *bad, int(seconds)])
            if later - earlier > RECOVERED_SECONDS
        ),
        None,
    )


def soak(pid: int, port: int, request: bytes, *, rate: float, seconds: float) -> dict[str, Any]:
    """Memory of the API process under a moderate load."""
    megabytes, answers, refused = [], 0, 0
    for _ in range(SOAK_PARTS):
        done = drive(port, request, rate=rate, seconds=seconds / SOAK_PARTS)
        answers += done.answers
        refused += done.answers - len(done.took(CREATED)) + done.lost + done.unsent
        megabytes.append(memory_of(pid) / 2**20)
    counted = megabytes[SOAK_WARM_UP:]
    first, last = median(counted[:COMPARED_PARTS]), median(counted[-COMPARED_PARTS:])
    return {
        "seconds": seconds,
        "orders": answers,
        "not_created": refused,
        "memory_mb": [round(each, 1) for each in megabytes],
        "memory_growth_share": round(last / first - 1, 4),
    }


def show(found: dict[str, Any]) -> None:
    overloaded, soaked = found["overloaded"], found.get("soak")
    created, refused = overloaded["created"], overloaded["refused"]
    rows = [
        ("orders a second, with hardly one there", "", str(found["first_orders_per_second"])),
        (
            f"  at the peak: with {found['orders_at_the_peak']:,}, and after the overload",
            "",
            f"{found['peak_per_second']}, {found['peak_after_per_second']}",
        ),
        ("  at half of it: p50, p99 ms", "", f"{found['before']['p50_ms']}, {found['before']['p99_ms']}"),
        ("arriving a second", "twice the peak", str(overloaded["arrived_per_second"])),
        (
            "created a second",
            "≥ 80 % of the peak",
            (
                f"{overloaded['created_per_second']}: {overloaded['goodput_share_of_peak']:.0%} of that before,"
                f" {overloaded['goodput_share_of_peak_after']:.0%} of that after"
            ),
        ),
        ("  p50, p99 ms", "", f"{created.get('p50_ms')}, {created.get('p99_ms')}"),
        ("refused with 503 within 100 ms", "the rest", f"{overloaded['refused_promptly_share']:.1%}"),
        ("  p50, p99 ms", "", f"{refused.get('p50_ms')}, {refused.get('p99_ms')}"),
        (
            "other answers, lost, without a connection",
            "0",
            f"{overloaded['other_answers']}, {overloaded['lost']}, {overloaded['unsent']}",
        ),
        ("as before after, s", "≤ 30", str(found["recovered_after_seconds"])),
        (
            "  seconds in which some were refused or late, at half of the peak, before and after",
            "",
            ", ".join(str(len(each)) for each in found["seconds_refused_or_late"].values()),
        ),
        ("cores in use at the peak", "", told(found["cores_at_peak"])),
        ("  in overload", "", told(found["cores_in_overload"])),
    ]
    if soaked is not None:
        rows.append(
            (
                f"memory after {soaked['seconds']:.0f} s of soak",
                "flat",
                f"{soaked['memory_growth_share']:+.1%}",
            )
        )
    figures.show("Twice the load that the API can take", rows, columns=("Figure", "Goal", "Measured"))


def told(cores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {used:.2f}" for name, used in cores.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter runs, to check that it works")
    parser.add_argument("--soak-seconds", type=float, help="1200, and with --quick 12; 0: no soak")
    options = parser.parse_args()
    soak_seconds = (
        options.soak_seconds if options.soak_seconds is not None else 12 if options.quick else 1_200
    )
    plan = (
        Plan(filled=2, saturated=2, calm=3, overloaded=5, soak=soak_seconds)
        if options.quick
        else Plan(filled=60, saturated=10, calm=35, overloaded=120, soak=soak_seconds)
    )
    found = measure(plan)
    show(found)
    if not options.quick:
        figures.keep("overload", found)


if __name__ == "__main__":
    run(main)
