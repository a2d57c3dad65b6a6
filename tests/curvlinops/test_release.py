"""Which releases of curvlinops are taken, and where else that stands."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tn_extensions.curvlinops.release import BELOW, LINE, LOWEST, line_of

OLD: Any = SimpleNamespace(compute_parameter_mapping=None)
NEXT: Any = SimpleNamespace(_BACKENDS={"hooks": None})
NEITHER: Any = SimpleNamespace()


@pytest.mark.parametrize("version", ["3.0.1", "3.0.7", "3.0.1.post1"])
def test_line(version: str) -> None:
    assert line_of(version, OLD) == "3.0"


@pytest.mark.parametrize("version", ["3.0.2.dev64+g63fd690", "3.1", "4.0.0rc1", "4.2"])
def test_next_line(version: str) -> None:
    """A checkout calls itself a successor of the last release."""
    assert line_of(version, NEXT) == "next"


@pytest.mark.parametrize(
    ("version", "operator"),
    [("3.0.0", OLD), ("2.0.1", OLD), ("5.0.0", NEXT), ("4.1.0", NEITHER), ("", NEXT)],
)
def test_neither(version: str, operator: Any) -> None:
    with pytest.raises(ImportError) as error:
        line_of(version, operator)
    message = str(error.value)
    assert message.startswith("tn_extensions.curvlinops: curvlinops-for-pytorch must")
    assert f"got {version}. Install " in message and "\n" not in message


def test_range_is_that_of_the_package() -> None:
    config = ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    low, below = (".".join(map(str, own)) for own in (LOWEST, BELOW))
    wanted = f"curvlinops-for-pytorch>={low},<{below}"
    assert wanted in config["options"]["install_requires"].split()
    assert LINE in {"3.0", "next"}
