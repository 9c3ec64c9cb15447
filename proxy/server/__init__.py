"""What a request is answered with: dispatch, the pass-through, the session API, metrics."""
