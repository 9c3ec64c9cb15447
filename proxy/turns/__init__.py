"""A recorded turn: the request, how it is meant, the exchange with the upstream, the record."""
