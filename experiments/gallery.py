"""Make docs/gallery.md and the pictures of docs/.

A picture file holds a digest of what it shows, so that a test can tell whether it is
still what the package draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import get_args

from experiments.gallery_pictures import pictures
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.diagram import Scene
from tn_extensions.diagram.figure import render
from tn_extensions.diagram.tikz import source

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURES = DOCS / "gallery.md", DOCS / "figures"
_COLORS = 128
"""Enough for a picture, and a third of the file's size."""

N, V = 8, 10
CONV = Conv.make(64, 64, 3, (28, 28), padding=1)
"""The layer of which costs are given."""

FORMULAS = {
    "conv": "`Y = sum_{ci, k} U W`",
    "unfold_input": "`U = sum_i X P`",
    "unfold_weight": "`sum_k P W`",
    "fold_output": "`sum_{k, o} P u`",
    "weight_vjp": "`sum_{n, o} g U`",
    "input_vjp": "`sum_{co, o, k} g P W`",
    "weight_jvp": "`sum_{ci, k} U W_dot`",
    "input_jvp": "`sum_{ci, k} U_dot W`",
    "per_sample_grad": "`sum_o g U`",
    "per_sample_grad_norm": "`sum_{co, ci, k} (sum_o g U)^2`",
    "ggn_diagonal": "`sum_{v, n} (sum_o S U)^2`",
    "ggn_gram": "`sum_{co, ci, k} (sum_o S U) (sum_o S U)'`",
    "ggn_matvec": "`sum_{v, n} (sum_o S U) <sum_o S U, W_dot>`",
    "diagonal_backward": "`sum_{co, o, k} h P W^2`",
    "bias_vjp": "`sum_{n, o} g`",
    "bias_per_sample_grad": "`sum_o g`",
    "bias_per_sample_grad_norm": "`sum_co (sum_o g)^2`",
    "bias_ggn_diagonal": "`sum_{v, n} (sum_o S)^2`",
    "bias_ggn_gram": "`sum_co (sum_o S) (sum_o S)'`",
    "patch_sum": "`sum_o U`",
    "patch_total": "`sum_{n, o} U`",
    "kfac_expand": "`sum_{n, o} U U'`",
    "kfac_reduce": "`sum_n (sum_o U) (sum_o U)'`",
    "gradient_factor_expand": "`sum_{n, o} g g'`",
    "gradient_factor_reduce": "`sum_n (sum_o g) (sum_o g)'`",
    "rotated_grad": "`sum_{co, ci, k} QB (sum_o g U) QA`",
    "kfac_moments": "`sum_n (sum_{co, ci, k} QB (sum_o g U) QA)^2`",
}
"""Without their scales, as the networks are."""

_WITH_VECTORS = (
    "ggn_diagonal",
    "ggn_gram",
    "ggn_matvec",
    "bias_ggn_diagonal",
    "bias_ggn_gram",
)


def network(name: str) -> TensorNetwork:
    """A quantity of the layer of which costs are given."""
    define: Callable[..., TensorNetwork] = getattr(quantities, name)
    return define(CONV, N, *([V] if name in _WITH_VECTORS else []))


def costs() -> str:
    """The table of all quantities."""
    head = "quantity, network, result, contracted as drawn, planned, by, held"
    rows = [head.split(", ")]
    for name in get_args(quantities.Quantity):
        defined = network(name)
        explained = defined.explain()
        rows.append(
            [
                f"`{name}`",
                FORMULAS[name],
                f"`{list(defined.shape)}`",
                _millions(defined.flops),
                _millions(explained.cost.flops),
                f"`{explained.primitive}`",
                _millions(explained.cost.peak),
            ]
        )
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _millions(count: float) -> str:
    """Give three digits, or those before the point."""
    scaled = count * 1e-6
    return f"{scaled:.3g}" if scaled < 1000 else f"{scaled:.0f}"


def picture(scene: Scene) -> bytes:
    """Content of a picture's file."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image = Image.open(BytesIO(render(scene, "png"))).convert("RGB").quantize(_COLORS)
    info, buffer = PngInfo(), BytesIO()
    info.add_text("Scene", digest(scene))
    image.save(buffer, "png", optimize=True, pnginfo=info)
    return buffer.getvalue()


def digest(scene: Scene) -> str:
    """What a picture shows, in a line."""
    return hashlib.sha256(source(scene).encode()).hexdigest()[:16]


def page() -> str:
    """Text of the gallery."""
    return TEXT.format(costs=costs(), n=N, v=V)


def main() -> None:
    """Write the page and the pictures."""
    FIGURES.mkdir(exist_ok=True)
    for name, scene in pictures().items():
        path = FIGURES / f"{name}.png"
        path.write_bytes(picture(scene))
        print(path)
    PAGE.write_text(page(), "utf-8")
    print(PAGE)


TEXT = """# Gallery

All pictures are drawn by the package, from the networks that it computes with. `make
docs-figures` makes them and this page. For your own:

```python
from tn_extensions import Conv, quantities

network = quantities.kfac_reduce(Conv.make(4, 6, 3, (9, 9), groups=2), 8)
network.draw().savefig("reduce.svg")
source = network.to_tikz()  # a LaTeX document, or standalone=False
```

Boxes are tensors, hexagons are index patterns, with the condition on which they are
one. Lines are indices: those that end in the open belong to the result, whose axes and
sizes are below the picture; a dot joins all that carry an index; a circled 1 is a sum
over an index that nobody else carries. Batch indices are purple, groups brown, channels
blue, space black. The box `g` is the output's gradient, or `S`, the square root of the
loss Hessian.

The first five are the counterparts of Figures 1 to 5 of
[Dangel, 2024](https://arxiv.org/abs/2307.02275).

## Convolution

In any dimension, an operand each for input and kernel, and a pattern per dimension.
Groups are a line that both carry and the result keeps.

![convolution](figures/convolution.png)

## Unfolded input and kernel, folded output

Sub-networks: convolution is a matrix product of either with what is left. Cutting the
input out of the unfolded input leaves its adjoint, which adds up patches `u`. A
transposed convolution has the same patterns, which hit its output.

![unfolded input and kernel, folded output](figures/unfolded.png)

## Jacobians, VJPs and JVPs

A network is linear in each operand, so cutting one out differentiates; what the result
shares with the operand becomes a `delta`. A vector in place of the result is a VJP, one
in place of the operand a JVP.

![derivatives](figures/derivatives.png)

## Kronecker factors

KFAC-expand (KFC) joins output positions, KFAC-reduce sums them in each copy.

![Kronecker factors](figures/kfac.png)

Those of the output's gradients, and EKFAC's moments: squares of per-sample gradients in
the factors' eigenbases `QA` and `QB`.

![factors of gradients, and moments](figures/moments.png)

## Simplifications

Each rule before and after. Swapping the roles of kernel and output needs no rule: a
pattern's terms are not ordered. [How a quantity is evaluated](plans.md) has the table.

![simplifications](figures/simplifications.png)

## Per-sample gradients

![per-sample gradients](figures/gradients.png)

## GGN: diagonal and Gram matrix

![diagonal and Gram matrix of the GGN](figures/ggn.png)

## Products with the GGN

A vector meets one half: its `J_vn` may be formed once for both, or go forward and back.

![products with the GGN](figures/matvec.png)

## Diagonals of Hessians

Backpropagated from the output's `h` to the input, with the kernel squared.

![backpropagation of a diagonal](figures/diagonal.png)

## Sums of patches

![sums of patches](figures/patches.png)

## Bias

![quantities of a bias](figures/bias.png)

## Other dimensions

![one and three dimensions](figures/dimensions.png)

## Operations of the paper

What [Dangel, 2024](https://arxiv.org/abs/2307.02275) writes as einsums, and where it is
here. All take transposed convolutions, which are the rows marked "transposed" there.

| operation | function | picture |
|-|-|-|
| convolution, transposed convolution | `conv` | [convolution] |
| unfolded input (im2col), transposed | `unfold_input` | [unfolded] |
| unfolded kernel (Toeplitz), transposed | `unfold_weight` | [unfolded] |
| folded output (col2im), transposed | `fold_output` | [unfolded] |
| weight VJP, transposed | `weight_vjp` | [derivatives] |
| input VJP, transposed | `input_vjp` | [derivatives] |
| weight JVP, input JVP | `weight_jvp`, `input_jvp` | [derivatives] |
| per-sample weight VJP | `per_sample_grad` | [gradients] |
| KFC, KFAC-expand, transposed | `kfac_expand` | [factors] |
| KFAC-reduce, transposed | `kfac_reduce` | [factors] |
| GGN Gram matrix | `ggn_gram` | [GGN] |
| GGN or Fisher diagonal | `ggn_diagonal` | [GGN] |
| GGN or Fisher times a vector | `ggn_matvec` | [products] |
| approximate Hessian diagonal | `diagonal_backward` | [diagonals] |

[convolution]: #convolution
[unfolded]: #unfolded-input-and-kernel-folded-output
[derivatives]: #jacobians-vjps-and-jvps
[gradients]: #per-sample-gradients
[factors]: #kronecker-factors
[GGN]: #ggn-diagonal-and-gram-matrix
[products]: #products-with-the-ggn
[diagonals]: #diagonals-of-hessians

## Formulas and costs

For 64 to 64 channels, 3x3 kernel, padding 1, 28x28 pixels, batch {n}, {v} vectors per
sample, on a CPU, in millions: multiply-adds of a pairwise contraction with patterns as
tensors, those of the plan and the primitive that it chose, and elements that it holds
beyond inputs and output. `network.explain()` has the same, and what was rejected, for
all networks and sizes.

{costs}
"""

if __name__ == "__main__":
    main()
