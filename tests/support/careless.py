"""The proxy on a store that does not sync its commits: `python -m tests.support.careless serve ...`.

Not a way to run it: what a power cut takes from this one proves that its test can see a loss.
"""

from __future__ import annotations

from proxy import cli
from proxy.stores.sqlite import store as sqlite

FULL, NORMAL = "PRAGMA synchronous=FULL", "PRAGMA synchronous=NORMAL"


def main() -> int:
    careful = sqlite._PRAGMAS
    assert careful.count(FULL) == 1, "the store is made durable in another way now: this control is void"
    vars(sqlite)["_PRAGMAS"] = tuple([NORMAL if pragma == FULL else pragma for pragma in careful])
    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
