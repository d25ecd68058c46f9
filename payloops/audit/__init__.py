"""`payloops audit`: what happened to an order, and proof that nobody rewrote it. For support staff and auditors."""
