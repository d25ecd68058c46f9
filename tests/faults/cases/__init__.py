"""The cases: what goes wrong, and what has to come of it beside the invariants."""

from faults.cases import failover, money, operations, processes, servers
from faults.cases.registry import CASES, Case, Skipped

__all__ = ["CASES", "Case", "Skipped", "failover", "money", "operations", "processes", "servers"]
