"""Splits the SEAL release's 100 passages into those that choices are made on and the reported.

    python experiments/split_seal_data.py --data seal_train100.json --output-dir artifacts/data

Writes `choose.json` (the first 50) and `report.json` (the last 50), in the file's own order.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

CHOOSE = 50


def main() -> None:
    """Reads the arguments and writes the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args()
    passages = json.loads(arguments.data.read_text(encoding="utf-8"))
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, part in (("choose", passages[:CHOOSE]), ("report", passages[CHOOSE:])):
        path = arguments.output_dir / f"{name}.json"
        path.write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
