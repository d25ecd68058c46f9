"""`payloops audit`: what happened to an order, and that nobody has rewritten it. For support staff and auditors."""
