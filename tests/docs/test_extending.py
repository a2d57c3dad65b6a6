"""By docs/extending.md, a quantity, a primitive and a rule take one file each."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.docs.pages import DOCS, blocks
from tests.network.rules.identities import assert_same_value
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler import unregister
from tn_extensions.network import build, simplify

FILES = {
    block.text.splitlines()[0].removeprefix("# "): block.text
    for block in blocks(DOCS / "extending.md", "python")
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where files are imported from."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def load(folder: Path, name: str) -> ModuleType:
    (folder / name).write_text(FILES[name], "utf-8")
    importlib.invalidate_caches()
    return importlib.import_module(Path(name).stem)


def test_page_has_a_file_each() -> None:
    assert set(FILES) == {"patch_norms.py", "dot.py", "join.py"}


def test_quantity(folder: Path) -> None:
    patch_norms = load(folder, "patch_norms.py").patch_norms
    network = patch_norms(Conv.make(4, 6, 3, (9, 9), groups=2), 8)
    x = torch.rand(8, 4, 9, 9, dtype=torch.float64)
    unfolded = torch.nn.functional.unfold(x, 3).unflatten(1, (2, 18))
    assert torch.allclose(network.evaluate(x=x), unfolded.square().sum(2))
    assert "tikzpicture" in network.to_tikz()
    assert network.explain(n=3).cost.flops > 0


def inner_product() -> TensorNetwork:
    sizes = {"i": 300, "j": 40}
    return build({"a": ["i", "j"], "b": ["i", "j"]}, [], sizes)


def test_primitive(folder: Path) -> None:
    network = inner_product()
    assert network.explain().primitive != "dot"
    module = load(folder, "dot.py")
    try:
        assert network.explain().primitive == "dot"
        a, b = torch.rand(2, 300, 40, dtype=torch.float64)
        assert torch.allclose(network.evaluate(a=a, b=b), (a * b).sum())
        # what it does not know stays as it was
        other = build({"a": ["i"], "b": ["j"]}, ["i"], {"i": 2, "j": 3}, summed=["j"])
        ways = [name for name, _ in other.explain().rejected]
        assert "dot" not in [other.explain().primitive, *ways]
    finally:
        unregister(module.dot)
    assert network.explain().primitive != "dot"


@pytest.mark.parametrize("groups", [1, 2])
def test_rule(folder: Path, groups: int) -> None:
    join = load(folder, "join.py").join
    network = quantities.conv(Conv.make(4, 6, 3, 9, groups=groups), 2)
    jacobian = network.jacobian("weight")
    axes = jacobian.output[len(network.output) :]
    sizes = {index: jacobian.sizes[index] for axis in axes for index in axis}
    kernel = build({"weight": axes}, axes, sizes)
    product = jacobian.multiply(kernel, network.output)
    joined, trace = simplify(product, [join], trace=True)
    assert joined == network
    assert {step.rule for step in trace} == {"join"}
    assert all("delta" in step.identity for step in trace)
    assert_same_value(product, joined)
