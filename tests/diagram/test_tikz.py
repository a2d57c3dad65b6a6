"""TikZ source holds all that the scene holds, and LaTeX takes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.diagram.networks import CASES, conv
from tn_extensions import TensorNetwork, quantities
from tn_extensions.diagram import layout
from tn_extensions.diagram.tikz import PREAMBLE, STYLES, source
from tn_extensions.network import Operand, simplify

needs_latex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="LaTeX is not installed"
)


@pytest.mark.parametrize("network", CASES.values(), ids=CASES.keys())
def test_source_holds_the_scene(network: TensorNetwork) -> None:
    scene = layout(network)
    text = source(scene, standalone=False)
    assert text.count(r"\draw[tn operand]") == len(network.operands)
    hexagons = (*network.patterns, *network.selections)
    assert text.count(r"\draw[tn pattern]") == len(hexagons)
    assert text.count(r"\draw[tn pair]") == len(network.pairs)
    labels = re.findall(r"\\node\[tn label=[^]]*\] at \([^)]*\) \{(.*)\};", text)
    assert labels == [wire.label.text for wire in scene.wires]
    assert text.count("circle[radius") == sum(len(w.dots) for w in scene.wires)


def compile_latex(folder: Path, text: str) -> None:
    (folder / "picture.tex").write_text(text, "utf-8")
    result = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "picture.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:]
    assert (folder / "picture.pdf").stat().st_size > 1000
    log = (folder / "picture.log").read_text("latin-1")
    assert "Missing character" not in log
    assert "LaTeX Warning" not in log


@needs_latex
def test_pictures_compile(tmp_path: Path) -> None:
    pictures = (source(layout(network), standalone=False) for network in CASES.values())
    body = "\n".join(pictures)
    compile_latex(
        tmp_path, f"{PREAMBLE}{STYLES}\\begin{{document}}\n{body}\\end{{document}}\n"
    )


@needs_latex
def test_methods_give_documents(tmp_path: Path) -> None:
    network = quantities.conv(conv(2), 2)
    compile_latex(tmp_path, network.to_tikz())
    compile_latex(tmp_path, network.to_tikz(shade={"50% of a_b & #1": ["x", "P1"]}))
    odd_name = TensorNetwork([Operand("a_b", ())], (), {})
    compile_latex(tmp_path, odd_name.to_tikz())


@needs_latex
def test_traces_compile(tmp_path: Path) -> None:
    _, trace = simplify(quantities.kfac_reduce(conv(1), 2), trace=True)
    compile_latex(tmp_path, trace.to_tikz())
