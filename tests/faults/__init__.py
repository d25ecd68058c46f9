"""Faults: what becomes of money when processes, servers and clients misbehave. `make faults`, `docs/faults.md`.

Not collected by pytest. A case lets clients use a whole service, of real processes on real servers, while
something goes wrong; then everything is let come to rest, and the same invariants are asked of what is left.
"""
