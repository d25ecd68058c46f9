"""`payloops dev`, the whole service on this machine, and `payloops demo`, which takes an order through it."""
