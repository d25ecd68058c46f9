"""`payloops reconcile`: asking processors what became of payments, and recording what they answer."""
