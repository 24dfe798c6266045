"""``python -m cvxlayers warmup``: compile the kernels of the solvers INTERIOR and ACTIVE_SET, and of control, ahead of their first use."""

from __future__ import annotations

import argparse

from cvxlayers.control.warmup import warmup as control
from cvxlayers.solvers.warmup import warmup


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and obey."""
    parser = argparse.ArgumentParser(prog="python -m cvxlayers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ahead = commands.add_parser("warmup", help="compile the kernels ahead of their first use; later processes load them from disk")
    ahead.add_argument("--linear", action="store_true", help="only those for linear and quadratic programs")
    warmup(linear_only=parser.parse_args(arguments).linear)
    control()


if __name__ == "__main__":
    main()
