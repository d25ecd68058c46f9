"""The sandbox processor: a payment processor of our own with its own books, and the worker speaking to it.

It stands where the platform's processor workers stand, on the same queues and in the same words, so that
every payment of development and tests goes all the way. Tokens choose what happens to one (`ledger.py`).
"""
