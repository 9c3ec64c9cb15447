"""Answers requests: dispatch, pass-through, session API, metrics and the control socket."""
