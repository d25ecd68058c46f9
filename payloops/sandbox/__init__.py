"""The sandbox: a simulated payment processor with its own ledger, and the Temporal worker in front of it.

It stands in for the platform's processor workers, on the same task queues and with the same messages, so that every
payment in development and tests takes the whole path. The payment's token decides its outcome (`ledger.py`).
"""
