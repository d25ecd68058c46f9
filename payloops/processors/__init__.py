"""Asking the processors how a payment stands, each in its own way: the sandbox, Stripe, Razorpay."""
