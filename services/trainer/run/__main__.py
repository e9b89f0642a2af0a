"""`python -m services.trainer.run CONFIG.yaml`: one training run as a process.

Exit codes: 0 the result is there; 42 configuration or data are bad; 143 asked to stop, and to be
started again with the same file; 74 the disk is full; 1 anything else. `--check` reads and checks,
and computes nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from services.trainer.run.process import execute
from services.trainer.run.reading import read_run
from services.trainer.run.stopping import StopFlag
from services.trainer.run.violations import EXIT_REFUSED, RefusedError


def main() -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.run")
    parser.add_argument("configuration", type=Path)
    parser.add_argument("--check", action="store_true", help="check, and compute nothing")
    parser.add_argument(
        "--end-with-parent", action="store_true", help="stop when standard input ends"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = StopFlag()
    stop.listen()
    if arguments.end_with_parent:
        stop.when_input_ends()
    try:
        run = read_run(arguments.configuration)
    except RefusedError as error:
        print(f"the run cannot start:\n{error}", file=sys.stderr)
        return EXIT_REFUSED
    return 0 if arguments.check else execute(run, stop)


if __name__ == "__main__":
    sys.exit(main())
