"""Implementations of the seams in `aios.core.protocols`; the only importers of torch."""

import os

# Threads that wait for one another spin for a moment and then sleep. OpenMP's default, spinning for
# long, makes torch many times slower where another program wants the same cores; not spinning at
# all costs speed on an idle one. It counts if torch is not imported yet. Who has chosen a policy
# keeps it: the spin count would take its place.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
