"""The pictures of docs/: which networks they show, and what is shaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.diagram import Scene, layout, strip
from tn_extensions.diagram.trace import strip_of
from tn_extensions.network import Rule, Trace, simplify
from tn_extensions.network.rules import dense, pair, squeeze, trim, window_sum
from tn_extensions.network.text import si

Shade = Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class Panel:
    """One network of a picture.

    Args:
        title: Line above it.
        network: What is shown.
        shade: What is shaded; None: the halves.
        detail: A second line.
    """

    title: str
    network: TensorNetwork
    shade: Shade | None = None
    detail: str = ""


def scene(panels: Iterable[Panel], columns: int) -> Scene:
    """Put panels side by side."""
    panels = list(panels)
    titles = [
        (panel.title, panel.detail) if panel.detail else (panel.title,)
        for panel in panels
    ]
    drawn = (layout(panel.network, panel.shade) for panel in panels)
    return strip(drawn, titles, columns)


N, V = 8, 10
CONV = Conv.make(4, 6, 3, (9, 9), stride=2, padding=1, groups=2)
TRANSPOSED = Conv.make(4, 6, 3, (5, 5), stride=2, padding=1, groups=2, transposed=True)
LINE = Conv.make(4, 6, 3, 9, padding=1)
UNFOLDED = {"unfolded input": ["x", "P1", "P2"]}
TOEPLITZ = {"unfolded kernel": ["weight", "P1", "P2", "delta g"]}
BOTH = {**UNFOLDED, "its copy": ["x'", "P1'", "P2'"]}


def pictures() -> dict[str, Scene]:
    """Return all pictures, by the names of their files."""
    convolution = quantities.conv(CONV, N)
    expand, reduce = quantities.kfac_expand(CONV, N), quantities.kfac_reduce(CONV, N)
    return {
        "convolution": scene(
            [
                Panel("1d", quantities.conv(LINE, N)),
                Panel("2d", convolution),
                Panel("3d", quantities.conv(_cube(), N)),
            ],
            3,
        ),
        "unfolded": scene(
            [
                Panel("convolution", convolution, UNFOLDED),
                Panel("unfold_input", quantities.unfold_input(CONV, N), UNFOLDED),
                Panel("unfold_weight", quantities.unfold_weight(CONV), TOEPLITZ),
                Panel("fold_output", quantities.fold_output(CONV, N)),
                Panel(
                    "unfold_input, transposed",
                    quantities.unfold_input(TRANSPOSED, N),
                    UNFOLDED,
                ),
                Panel(
                    "unfold_weight, transposed",
                    quantities.unfold_weight(TRANSPOSED),
                    TOEPLITZ,
                ),
            ],
            3,
        ),
        "derivatives": scene(
            [
                Panel("conv, weight cut: Jacobian", convolution.jacobian("weight")),
                Panel("conv, input cut: Jacobian", convolution.jacobian("x")),
                Panel("weight_vjp", quantities.weight_vjp(CONV, N)),
                Panel("input_vjp", quantities.input_vjp(CONV, N)),
                Panel("weight_jvp", quantities.weight_jvp(CONV, N)),
                Panel("input_jvp", quantities.input_jvp(CONV, N)),
            ],
            2,
        ),
        "kfac": scene(
            [
                Panel("kfac_expand (KFC)", expand, BOTH),
                Panel("kfac_reduce", reduce, BOTH),
            ],
            2,
        ),
        "moments": scene(
            [
                Panel(
                    "gradient_factor_expand", quantities.gradient_factor_expand(CONV, N)
                ),
                Panel(
                    "gradient_factor_reduce", quantities.gradient_factor_reduce(CONV, N)
                ),
                Panel("rotated_grad", quantities.rotated_grad(CONV, N)),
                Panel("kfac_moments", quantities.kfac_moments(CONV, N)),
            ],
            2,
        ),
        "simplifications": scene(_simplifications(), 2),
        "gradients": scene(
            [
                Panel("per_sample_grad", quantities.per_sample_grad(CONV, N, V)),
                Panel("per_sample_grad_norm", quantities.per_sample_grad_norm(CONV, N)),
            ],
            2,
        ),
        "ggn": scene(
            [
                Panel("ggn_diagonal", quantities.ggn_diagonal(CONV, N, V)),
                Panel("ggn_gram", quantities.ggn_gram(CONV, N, V)),
            ],
            2,
        ),
        "matvec": scene([Panel("ggn_matvec", quantities.ggn_matvec(CONV, N, V, 3))], 1),
        "diagonal": scene(
            [Panel("diagonal_backward", quantities.diagonal_backward(CONV, N))], 1
        ),
        "patches": scene(
            [
                Panel("patch_sum", quantities.patch_sum(CONV, N)),
                Panel("patch_total", quantities.patch_total(CONV, N)),
            ],
            2,
        ),
        "bias": scene(
            [
                Panel("bias_vjp", quantities.bias_vjp(CONV, N)),
                Panel("bias_per_sample_grad", quantities.bias_per_sample_grad(CONV, N)),
                Panel(
                    "bias_per_sample_grad_norm",
                    quantities.bias_per_sample_grad_norm(CONV, N),
                ),
                Panel("bias_ggn_diagonal", quantities.bias_ggn_diagonal(CONV, N, V)),
                Panel("bias_ggn_gram", quantities.bias_ggn_gram(CONV, N, V)),
            ],
            3,
        ),
        "trace": strip_of(_trace(), columns=2),
        "layers": scene([Panel("two convolutions in a row", two_layers())], 1),
        "dimensions": scene(
            [
                Panel("kfac_expand, transposed, 1d", _transposed_factor()),
                Panel("kfac_expand, 3d", quantities.kfac_expand(_cube(), N)),
                Panel("ggn_diagonal, 1d", quantities.ggn_diagonal(LINE, N, V)),
                Panel("ggn_diagonal, 3d", quantities.ggn_diagonal(_cube(), N, V)),
            ],
            2,
        ),
    }


def _cube() -> Conv:
    return Conv.make(4, 6, 3, (9, 9, 9), padding=1, groups=2)


def _trace() -> Trace:
    """Rewrite the factor of docs/tutorials/kfac.md to a matrix product of the input."""
    sampling = Conv.make(4, 6, kernel_size=2, input_size=12, stride=4)
    return simplify(quantities.kfac_expand(sampling, N), trace=True)[1]


def two_layers() -> TensorNetwork:
    """Connect two convolutions, as in docs/tutorials/own-quantity.md."""
    first = quantities.conv(Conv.make(4, 6, 3, (9, 9), padding=1), 2)
    second = quantities.conv(Conv.make(6, 8, 3, (9, 9), stride=2), 2)
    second = second.jvp("weight", "weight2").cut("x", [("co",), ("o1",), ("o2",)])
    names = {"ci": "co", "i1": "o1", "i2": "o2", "co": "c", "o1": "z1", "o2": "z2"}
    second = second.relabel({**names, "k1": "l1", "k2": "l2"})
    return first.multiply(second, [("n",), ("c",), ("z1",), ("z2",)])


def _transposed_factor() -> TensorNetwork:
    conv = Conv.make(4, 6, 3, 9, stride=2, padding=1, transposed=True)
    return quantities.kfac_expand(conv, N)


def _simplifications() -> list[Panel]:
    """Show a network in one dimension before and after each rule."""
    patchify = Conv.make(4, 6, 3, 9, stride=3)
    strided = Conv.make(4, 6, 1, 9, stride=2)
    alone = Conv.make(4, 6, 3, 9, padding=1)
    unfolded = quantities.unfold_input
    cases: list[tuple[TensorNetwork, Rule]] = [
        (unfolded(patchify, N), dense),
        (unfolded(strided, N), trim),
        (quantities.kfac_reduce(alone, N), window_sum),
        (quantities.kfac_expand(alone, N), pair),
        (unfolded(Conv.make(4, 6, 3, 3), N), squeeze),
    ]
    panels = []
    for network, rule in cases:
        if rule is not squeeze:  # the others are clearer without indices of size one
            network = simplify(network, [squeeze])
        _, trace = simplify(network, [rule], trace=True)
        after = trace[-1].after
        panels.append(Panel("before", network, detail=_cost(network)))
        title = f"{rule.__name__}: {trace[-1].identity}"
        panels.append(Panel(title, after, detail=_cost(after)))
    return panels


def _cost(network: TensorNetwork) -> str:
    return f"{si(network.flops)} multiply-adds"
