"""Run one cell of the pipeline, or a grid with -m; `python train.py --help` explains the groups."""

import sys

from paft.command.main import main

if __name__ == "__main__":
    sys.exit(main())
