"""``python -m aios``: the same program as ``aios``."""

from aios.cli.aios import main

if __name__ == "__main__":
    main()
