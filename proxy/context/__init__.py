"""What all requests share: tenants, routes, queues, the log line of a request."""
