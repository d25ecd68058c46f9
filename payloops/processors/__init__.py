"""Asking a processor for the state of a payment: the sandbox, Stripe, Razorpay."""
