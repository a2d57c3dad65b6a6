"""Run a script with every installed toolkit patched: ``python -m tn_extensions``."""

from __future__ import annotations

import argparse
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

from tn_extensions.patch import TOOLKITS, patch
from tn_extensions.report import report


def main() -> None:
    """Patch, then run the script as ``python`` would."""
    parser = argparse.ArgumentParser(
        prog="python -m tn_extensions",
        description="Run a script with every installed toolkit using tn_extensions.",
    )
    add = parser.add_argument
    add("--only", action="append", choices=TOOLKITS, help="patch this toolkit only")
    add("--report", action="store_true", help="print at the end what was computed")
    add("script", help="path of the script")
    add("arguments", nargs=argparse.REMAINDER, help="arguments of the script")
    args = parser.parse_args()
    if not Path(args.script).exists():
        parser.error(f"script must exist, got {args.script}")
    patch(args.only)
    sys.argv = [args.script, *args.arguments]
    sys.path[0] = str(Path(args.script).resolve().parent)
    with report() if args.report else nullcontext() as found:
        try:
            runpy.run_path(args.script, run_name="__main__")
        finally:  # also after an exception, or `sys.exit`
            if found is not None:
                print(found, file=sys.stderr)


if __name__ == "__main__":
    main()
