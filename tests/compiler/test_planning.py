"""The planning mode: a setting and a context, for all threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.messages import assert_in_form
from tn_extensions import planning
from tn_extensions.compiler.planning import VARIABLE, current_mode


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    planning("estimate")


def test_contexts_nest() -> None:
    assert current_mode() == "estimate"
    with planning("measure"):
        assert current_mode() == "measure"
        with planning("estimate"):
            assert current_mode() == "estimate"
        assert current_mode() == "measure"
    assert current_mode() == "estimate"


def test_a_call_sets_the_mode() -> None:
    planning("measure")
    assert current_mode() == "measure"
    with planning("estimate"):
        assert current_mode() == "estimate"
    assert current_mode() == "measure"


def test_contexts_of_threads_close_in_any_order() -> None:
    first, second = planning("measure"), planning("measure")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert current_mode() == "measure"
    second.__exit__(None, None, None)
    assert current_mode() == "estimate"


def test_holds_in_all_threads() -> None:
    with ThreadPoolExecutor(1) as pool, planning("measure"):
        assert pool.submit(current_mode).result() == "measure"


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError) as caught:
        planning("guess")  # type: ignore[arg-type]
    assert_in_form(caught.value, "planning", "mode")
    assert current_mode() == "estimate"


def started_with(value: str) -> subprocess.CompletedProcess[str]:
    code = "import sys, tn_extensions\n"
    code += "print(sys.modules['tn_extensions.compiler.planning'].current_mode())"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, VARIABLE: value},
        capture_output=True,
        text=True,
        check=False,
    )


def test_environment_variable() -> None:
    assert started_with("measure").stdout.strip() == "measure"
    refused = started_with("guess")
    assert refused.returncode and VARIABLE in refused.stderr


def test_a_context_can_be_entered_again() -> None:
    context = planning("measure")
    for _ in range(2):
        with context:
            assert current_mode() == "measure"
        assert current_mode() == "estimate"
