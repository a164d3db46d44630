"""Observe, execute, reconcile, queue: moves values between the API server and the plans, and holds no policy."""
