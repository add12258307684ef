"""What would a run of ReST-EM cost? The same as ``aios seal restem estimate``.

    python scripts/estimate_restem_cost.py --dataset passages.jsonl --budget 2h
    python scripts/estimate_restem_cost.py --passages 100 --gpu A100-80GB --model-parameters 7B

``--help`` lists the rest.
"""

from __future__ import annotations

from aios.cli.aios import main

if __name__ == "__main__":
    main("seal", "restem", "estimate")
