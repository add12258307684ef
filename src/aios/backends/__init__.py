"""Implementations of the seams in `aios.core.protocols`; the only importers of torch."""

import os

# Threads that wait for one another spin for a moment and then sleep. OpenMP's default, spinning for
# long, makes torch many times slower where another program wants the same cores; not spinning at
# all costs a third of the speed (measured on 2 cores: 198 tokens/s passive, 302 with this value,
# 300 with the default on an idle machine). It counts if torch is not imported yet.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
