"""A llama.cpp server in a process of its own: says where it listens, ends with its standard input.

``python benchmarks/_llama_server.py MODEL.gguf --slots 16 --context 512`` prints one line
``{"address": "http://127.0.0.1:PORT"}`` when the model is loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description="A llama.cpp server for a benchmark.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--slots", type=int, required=True, help="completions written at a time")
    parser.add_argument("--context", type=int, required=True, help="tokens of one slot")
    parser.add_argument("--threads", type=int, required=True)
    asked = parser.parse_args()
    settings = xllamacpp.CommonParams()
    settings.model.path = str(asked.model)
    settings.n_parallel = asked.slots
    settings.n_ctx = asked.slots * asked.context
    settings.cpuparams.n_threads = asked.threads
    settings.cpuparams_batch.n_threads = asked.threads
    settings.cont_batching = True
    settings.cache_prompt = True
    settings.fit_params = False  # the context asked for, not what the server thinks fits
    settings.verbosity = 0
    settings.port = 0
    server = xllamacpp.Server(settings)
    print(json.dumps({"address": server.listening_address}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
