"""Holds what all requests share: tenants, routes, queues, prepared summaries and the request log."""
