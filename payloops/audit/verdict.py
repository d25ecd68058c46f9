"""The result of checking the log, and how `payloops audit verify` prints it."""

from dataclasses import asdict, dataclass, field

from payloops.events.log_check import Finding, SpanReport, Tampering
from payloops.events.seals import Seal
from payloops.printing import make_console, print_plain_json

SHOWN = 10
"""Findings to print after the first."""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """
    Attributes:
        events: number of events checked.
        newest: the newest seal; None if nothing is sealed.
        unsealed: number of events after it.
        without_mac: number of events without a MAC.
        first_without_mac, last_without_mac: their first and last position.
        findings: the first event of each span that is not as it was written, in order; then seals.
    """

    events: int
    seconds: float = 0.0
    newest: Seal | None = None
    unsealed: int = 0
    without_mac: int = 0
    first_without_mac: int = 0
    last_without_mac: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, report: SpanReport) -> None:
        self.findings += report.findings
        if report.without_mac:
            ends = (report.first_without_mac, self.first_without_mac)
            self.without_mac += report.without_mac
            self.first_without_mac = min(each for each in ends if each)
            self.last_without_mac = max(self.last_without_mac, report.last_without_mac)

    def holds(self, *, without_mac_until: int) -> bool:
        """Whether nothing was changed, and events without a MAC are only at positions up to the given one."""
        return not self.findings and self.last_without_mac <= without_mac_until


def print_verdict(verdict: Verdict, *, without_mac_until: int) -> None:
    console = make_console()
    rate = f", {verdict.events / verdict.seconds:,.0f} a second" if verdict.seconds else ""
    console.print(f"{verdict.events:,} events checked in {verdict.seconds:.1f} s{rate}")
    if verdict.newest is None:
        console.print("nothing is sealed yet: `payloops projector` seals the log")
    else:
        seal = verdict.newest
        console.print(
            f"{seal.number:,} seals over {seal.last_position:,} events, by the key {seal.key_id};"
            f" {verdict.unsealed:,} events since"
        )
        console.print(f"anchor: {seal.last_position}:{seal.hash.hex()}", soft_wrap=True)
    if verdict.without_mac:
        accepted = "accepted" if verdict.last_without_mac <= without_mac_until else "NOT accepted"
        console.print(
            f"{verdict.without_mac:,} events have no MAC, from {verdict.first_without_mac} to"
            f" {verdict.last_without_mac}: {accepted}. They were written by a version before there were MACs, or by"
            " hand; `--without-mac-until` accepts them up to a position."
        )
    if not verdict.findings:
        console.print("no event was edited, removed, inserted or reordered")
        return
    first, *others = verdict.findings
    console.print_line(finding_text(first), style="bold red")
    for finding in others[:SHOWN]:
        console.print_line(f"further on: {finding_text(finding)}")
    if len(others) > SHOWN:
        console.print(f"and {len(others) - SHOWN} more parts of the log are not as they were written")


def finding_text(finding: Finding) -> str:
    """`event 12 was edited: payment.captured 019…:3: its content …`."""
    event = f"{finding.event}: " if finding.event else ""
    verb = "is" if finding.tampering is Tampering.UNSEALED else "was"
    return f"event {finding.position} {verb} {finding.tampering.value}: {event}{finding.detail}"


def print_verdict_json(verdict: Verdict, *, holds: bool) -> None:
    seal = verdict.newest
    print_plain_json(
        {
            "holds": holds,
            "events": verdict.events,
            "seconds": round(verdict.seconds, 2),
            "sealed": None
            if seal is None
            else {
                "seals": seal.number,
                "upTo": seal.last_position,
                "key": seal.key_id,
                "anchor": f"{seal.last_position}:{seal.hash.hex()}",
            },
            "unsealed": verdict.unsealed,
            "withoutMac": {
                "events": verdict.without_mac,
                "first": verdict.first_without_mac,
                "last": verdict.last_without_mac,
            }
            if verdict.without_mac
            else None,
            "findings": [asdict(finding) for finding in verdict.findings],
        }
    )
