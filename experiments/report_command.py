"""The command that writes reports of result files anew."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path


def write_reports(
    module: str,
    doc: str | None,
    write: Callable[[Path], Sequence[Path]],
    arguments: Sequence[str] | None = None,
) -> None:
    """Write the reports that the command line asks for.

    Args:
        module: Name of the module that is run.
        doc: Its docstring.
        write: Writes the reports of a result file; their paths.
        arguments: The command line. Default: the process's.
    """
    description = (doc or "").splitlines()[0]
    parser = argparse.ArgumentParser(f"python -m {module}", description=description)
    parser.add_argument("result", type=Path)
    print("\n".join(map(str, write(parser.parse_args(arguments).result))))
