"""Which settings of ReST-EM serve best? The same as ``aios seal restem tune``.

    python scripts/tune_restem_hyperparams.py --dataset passages.jsonl --output tuning --trials 20

Needs Optuna (``pip install 'aios[tune]'``). The folder ``tuning`` gets the study, a run for each
trial, ``report.html``, ``tuning.json`` and ``best.yaml``. ``--help`` lists the rest.
"""

from __future__ import annotations

from aios.cli.aios import main

if __name__ == "__main__":
    main("seal", "restem", "tune")
