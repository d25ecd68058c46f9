"""`payloops audit verify`: checks the whole log with several processes, and names the first event changed by hand."""

import asyncio
import multiprocessing
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from payloops.audit.reading import NotUnderstood
from payloops.audit.verdict import Verdict, print_verdict, print_verdict_json
from payloops.events.log_check import (
    Finding,
    Span,
    SpanReport,
    Tampering,
    check_span,
    check_streams,
    checking_connection,
    log_ends,
    spans,
)
from payloops.events.merkle import HASH_BYTES
from payloops.events.seals import AuditKeys, Seal, last_seal, seal_ending_at, sealer_checkpoint
from payloops.progress import progress
from payloops.projections.building import Report
from payloops.projections.log_truncation import order_ahead, reader_ahead

SPAN_EVENTS = 25_000
"""Events that a process checks at a time."""
MAX_PROCESSES = 4
ANCHOR = re.compile(rf"(?P<position>[0-9]{{1,18}}):(?P<hash>[0-9a-fA-F]{{{HASH_BYTES * 2}}})")


@dataclass(frozen=True, slots=True)
class Anchor:
    """The hash of the seal that ends at a position, as noted outside the database."""

    position: int
    hash: bytes


def parse_anchor(text: str) -> Anchor:
    """Parse `POSITION:HASH`, as printed by `audit verify` and logged as `audit.sealed`.

    Raises:
        NotUnderstood.
    """
    if (parts := ANCHOR.fullmatch(text)) is None:  # a hash that was cut short would look like tampering
        raise NotUnderstood(
            f"{text!r} is not an anchor: write POSITION:HASH with all {HASH_BYTES * 2} digits of the hash, as"
            " `audit verify` prints it"
        )
    return Anchor(int(parts["position"]), bytes.fromhex(parts["hash"]))


async def run_verification(
    *,
    database_url: str,
    keys: AuditKeys,
    anchors: Sequence[Anchor],
    without_mac_until: int,
    workers: int | None,
    as_json: bool,
) -> bool:
    """Check the log and print the result. Returns whether it is as it was written.

    Args:
        anchors: seals that were noted outside the database.
        without_mac_until: accept events without a MAC up to this position.
        workers: number of processes; by default one per core, up to 4.
    """
    with progress() as report:
        verdict = await verify_log(
            database_url=database_url, keys=keys, anchors=anchors, workers=workers, report=report
        )
    holds = verdict.holds(without_mac_until=without_mac_until)
    if as_json:
        print_verdict_json(verdict, holds=holds)
    else:
        print_verdict(verdict, without_mac_until=without_mac_until)
    return holds


async def verify_log(
    *,
    database_url: str,
    keys: AuditKeys,
    report: Report,
    anchors: Sequence[Anchor] = (),
    workers: int | None = None,
    span_events: int = SPAN_EVENTS,
) -> Verdict:
    """Check all events in the log now: their contents, their streams, their positions, and the seals."""
    began = time.monotonic()
    async with checking_connection(database_url) as connection:
        checkpoint, newest = await sealer_checkpoint(connection), await last_seal(connection)
        head, oldest = await log_ends(connection)
        verdict = Verdict(events=head, newest=newest, unsealed=head)
        if newest is not None:
            verdict.unsealed = max(0, head - newest.last_position)
        verdict.findings += [
            finding
            for finding in (
                _check_oldest(oldest),
                _check_newest_seal(checkpoint, newest),
                *[await _check_anchor(database_url, anchor) for anchor in anchors],
                await _check_end(database_url, head=head),
            )
            if finding is not None
        ]
        streams = asyncio.create_task(_check_streams(database_url, head))
        try:
            found = spans(connection, size=span_events, upto=head)
            processes = _process_count(workers, head, span_events)
            checked = 0
            async with aclosing(_check_spans(found, database_url, keys=keys, workers=processes)) as reports:
                async for each in reports:
                    verdict.add(each)
                    checked += each.span.last - each.span.first + 1
                    report("events", min(checked, head), head)
            finding = await streams
        finally:
            streams.cancel()
    if finding is not None:
        verdict.findings.append(finding)
    verdict.findings.sort(key=_order)
    verdict.seconds = time.monotonic() - began
    return verdict


def _process_count(workers: int | None, events: int, span_events: int) -> int:
    """How many processes to use: a short log is checked faster by this one than others can be started."""
    if events <= 4 * span_events:
        return 1
    return workers or min(MAX_PROCESSES, os.cpu_count() or 1)


async def _check_spans(
    found: AsyncIterator[Span], database_url: str, *, keys: AuditKeys, workers: int
) -> AsyncGenerator[SpanReport]:
    """Check spans in parallel. Yields their reports as they are completed."""
    mac_keys, public_keys = keys.mac_keys, keys.public_keys
    if workers == 1:
        async with checking_connection(database_url) as connection:
            async for span in found:
                yield await check_span(connection, span, mac_keys=mac_keys, public_keys=public_keys)
        return
    running: set[asyncio.Future[SpanReport]] = set()
    with _pool(workers) as pool:
        async for span in found:
            work = pool.submit(_check_in_process, database_url, span, mac_keys, public_keys)
            running.add(asyncio.wrap_future(work))
            if len(running) >= 2 * workers:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        for each in asyncio.as_completed(running):
            yield await each


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C


def _check_in_process(
    database_url: str, span: Span, mac_keys: Sequence[bytes], public_keys: dict[str, bytes]
) -> SpanReport:
    async def check() -> SpanReport:
        async with checking_connection(database_url) as connection:
            return await check_span(connection, span, mac_keys=mac_keys, public_keys=public_keys)

    return asyncio.run(check())


def _order(finding: Finding) -> tuple[bool, int, int]:
    """Sort key: events before seals; findings about the same event by kind, the most specific first."""
    unsealed = finding.tampering is Tampering.UNSEALED
    return unsealed, finding.position, list(Tampering).index(finding.tampering)


async def _check_streams(database_url: str, upto: int) -> Finding | None:
    async with checking_connection(database_url) as connection:
        return await check_streams(connection, upto=upto)


def _check_oldest(oldest: int) -> Finding | None:
    if oldest >= 1:
        return None
    return Finding(oldest, Tampering.INSERTED, None, "the log begins at 1")


def _check_newest_seal(checkpoint: int, newest: Seal | None) -> Finding | None:
    sealed = 0 if newest is None else newest.last_position
    if checkpoint <= sealed:
        return None
    return Finding(sealed + 1, Tampering.UNSEALED, None, f"seals up to {checkpoint} were made, and are gone")


async def _check_anchor(database_url: str, anchor: Anchor) -> Finding | None:
    async with checking_connection(database_url) as connection:
        seal = await seal_ending_at(connection, anchor.position)
    if seal is not None and seal.hash == anchor.hash:
        return None
    what = "no seal ends there any more" if seal is None else f"seal {seal.number} has another hash"
    return Finding(anchor.position, Tampering.UNSEALED, None, f"{what}: not what the anchor says")


async def _check_end(database_url: str, *, head: int) -> Finding | None:
    """Check that no reader and no order knows of events after the end of the log."""
    async with checking_connection(database_url) as connection:
        reader, order = await reader_ahead(connection), await order_ahead(connection)
    if reader is not None:
        known = f"the reader {reader.name} is at position {reader.position}"
        return Finding(head + 1, Tampering.REMOVED, None, f"{known}, and the log ends at {head}")
    if order is not None:
        known = f"the table orders has version {order.version} of order {order.order_id}"
        detail = f"{known}, and its stream ends at {order.stream_version}"
        return Finding(head + 1, Tampering.REMOVED, f"{order.order_id}:{order.stream_version + 1}", detail)
    return None
