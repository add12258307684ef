"""Does training on self-edits make a better expert? The same as ``aios seal ab-test``.

    python scripts/seal_ab_test.py --dataset passages.jsonl --output results.json

``--dataset`` is another name of ``--input``. With ``--output results.json`` the numbers are
written to that file, and everything else (report, events, checkpoints) to the folder ``results``
beside it; with ``--output results`` all of it goes to the folder. ``--help`` lists the rest.
"""

from __future__ import annotations

from aios.cli.aios import main

if __name__ == "__main__":
    main("seal", "ab-test")
