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

from docs.scenes import pictures
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.diagram import Scene
from tn_extensions.diagram.figure import render
from tn_extensions.diagram.tikz import source

DOCS = Path(__file__).parent
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
    """Define a quantity of the layer of which costs are given."""
    define: Callable[..., TensorNetwork] = getattr(quantities, name)
    return define(CONV, N, *([V] if name in _WITH_VECTORS else []))


def costs() -> str:
    """Tabulate all quantities."""
    head = "quantity, network, result, as drawn, planned, by, held"
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
    """Return the content of a picture's file."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image = Image.open(BytesIO(render(scene, "png"))).convert("RGB").quantize(_COLORS)
    info, buffer = PngInfo(), BytesIO()
    info.add_text("Scene", digest(scene))
    image.save(buffer, "png", optimize=True, pnginfo=info)
    return buffer.getvalue()


def digest(scene: Scene) -> str:
    """Describe a picture in a line."""
    return hashlib.sha256(source(scene).encode()).hexdigest()[:16]


def page() -> str:
    """Return the text of the gallery."""
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


TEXT = """---
hide:
  - navigation
---

# Gallery

The package draws these pictures from the networks that it computes with. Draw your own:

```python
from tn_extensions import Conv, quantities

network = quantities.kfac_reduce(Conv.make(4, 6, 3, (9, 9), groups=2), 8)
network.draw().savefig("reduce.svg")
source = network.to_tikz()  # a LaTeX document, or standalone=False
```

How to read them:

* A **box** is a tensor, with its name in bold.
* A **hexagon** is an index pattern, with the equation for which it is one.
* A **line** is an index, with its name in italics. Samples and vectors are purple,
  groups brown, channels blue, and space is black.
* A line with an open end is an axis of the result. The axes of the result and their
  sizes are below the picture.
* A dot joins all nodes that carry an index. A circled 1 sums over an index that only
  one node carries.

The letter g stands for two things. The box **g** is the gradient of the output. The
brown line *g* counts groups. The box **S** is the square root of the loss Hessian.

The first five are the counterparts of Figures 1 to 5 of
[Dangel, 2024](https://arxiv.org/abs/2307.02275).

## Convolution

Input and kernel are one tensor each. Each dimension has a pattern. Groups are a line
that input and kernel share and the result keeps.

![convolutions in one, two and three dimensions](figures/convolution.png)

## Unfolded input and kernel, folded output

These are parts of a convolution. The unfolded input times the kernel is the
convolution, and so is the unfolded kernel times the input. The adjoint of unfolding
adds up patches **u**. A transposed convolution has the same patterns, but its output is
where the input of a convolution is.

![unfolded input and kernel, folded output](figures/unfolded.png)

## Jacobians, VJPs and JVPs

A network is linear in each tensor, so that cutting the tensor out differentiates. An
index that the tensor shares with the result becomes a `delta`. A vector in place of the
result makes a VJP, a vector in place of the tensor a JVP.

![Jacobians, VJPs and JVPs of a convolution](figures/derivatives.png)

## Kronecker factors

Both factors are two copies of the unfolded input. In KFAC-expand (KFC), the copies
share output positions. In KFAC-reduce, each copy sums its own.

![input factors of KFAC-expand and KFAC-reduce](figures/kfac.png)

The factors of the output's gradients are made likewise. EKFAC's moments are squares of
per-sample gradients in the factors' eigenbases **QA** and **QB**.

![factors of gradients, and moments](figures/moments.png)

## Simplifications

A network before and after each rule. [Networks](networks.md#rewriting-rules) explains
the rules. To exchange the roles of kernel and output needs no rule, since a pattern
does not order its terms.

![each rule's network before and after it](figures/simplifications.png)

## Per-sample gradients

![per-sample gradients, and their squared norms](figures/gradients.png)

## GGN: diagonal and Gram matrix

![diagonal and Gram matrix of the GGN](figures/ggn.png)

## Products with the GGN

One half is multiplied with the vector, the other with the result. Either the gradients
are formed once for both, or the vector is propagated forward and back.

![products with the GGN](figures/matvec.png)

## Diagonals of Hessians

The diagonal **h** at the output is backpropagated to the input, through the squared
kernel.

![backpropagation of a diagonal](figures/diagonal.png)

## Sums of patches

![sums of patches](figures/patches.png)

## Bias

![quantities of a bias](figures/bias.png)

## Other dimensions

![quantities in one and three dimensions](figures/dimensions.png)

## Operations of the paper

The table lists the einsums of [Dangel, 2024](https://arxiv.org/abs/2307.02275) and
where they are here. All functions take transposed convolutions, too.

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

The layer has 64 input and 64 output channels, a 3x3 kernel, padding 1 and 28x28 pixels.
The batch size is {n}, with {v} vectors for each sample. Numbers are millions, for a
CPU:

* *as drawn*: multiply-adds of a pairwise contraction with patterns as tensors;
* *planned*: multiply-adds of the plan, and the candidate that it chose;
* *held*: elements that the plan holds beyond inputs and output.

`network.explain()` has the same, and what was rejected, for all networks and sizes.

{costs}
"""

if __name__ == "__main__":
    main()
