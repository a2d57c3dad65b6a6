"""How fast are per-sample gradients, their norms, GGN diagonals and Gram matrices?

``python -m experiments.quantities --help`` lists the options. Writes JSON and, beside
it, a Markdown table: ours against BackPACK's own functions and ``torch.func``, on the
convolutions of real networks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch
from backpack.core.derivatives.conv2d import Conv2DDerivatives
from backpack.core.derivatives.convnd import weight_jac_t_save_memory
from backpack.utils.conv import extract_weight_diagonal, get_weight_gradient_factors
from torch import Tensor
from torch.func import functional_call, grad, vmap
from tqdm import tqdm

from experiments import machine, storage
from experiments.contenders import conv_of, make_input, unfold_input
from experiments.layers import Layer, select, smallest_of_each_family
from experiments.measure import (
    MIN_ROUNDS,
    MemoryNotMeasured,
    medians,
    peak_memory,
    preload,
    time_side_by_side,
)
from tn_extensions import functional

RESULTS = Path(__file__).parent / "results"


class Case(NamedTuple):
    """A layer with its input, and vectors in the space of its output.

    Args:
        module: The convolution, as BackPACK's hooks leave it after a forward pass.
        x: Its input.
        vectors: Gradients ``[N, C_out, ...]``, or a square root ``[V, N, C_out, ...]``.
    """

    module: Any
    x: Tensor
    vectors: Tensor


Compute = Callable[[Case], Tensor]


def _ours(name: str) -> Compute:
    call = getattr(functional, name)
    return lambda case: call(case.x, case.vectors, conv_of(case.module, case.x))


def _backpack_gradients(lean: bool) -> Compute:
    """BackPACK's per-sample gradients, with or without its option to save memory."""

    def compute(case: Case) -> Tensor:
        with weight_jac_t_save_memory(lean):
            result: Tensor = Conv2DDerivatives().param_mjp(
                "weight", case.module, None, None, case.vectors, sum_batch=False
            )
        return result

    return compute


def _torch_func_gradients(case: Case) -> Tensor:
    weight = case.module.weight.detach()

    def inner(weight: Tensor, x: Tensor, g: Tensor) -> Tensor:
        output = functional_call(case.module, {"weight": weight}, (x[None],))
        return (output[0] * g).sum()

    return vmap(grad(inner), in_dims=(None, 0, 0))(weight, case.x, case.vectors)


def _backpack_norm(case: Case) -> Tensor:
    x, g = get_weight_gradient_factors(case.x, case.vectors, case.module)
    return torch.einsum("nmi,nki,nmj,nkj->n", g, x, g, x)


def _backpack_diagonal(case: Case) -> Tensor:
    unfolded = unfold_input(case.module, case.x)
    return extract_weight_diagonal(case.module, unfolded, case.vectors)


def _gram_of_gradients(case: Case) -> Tensor:
    rows = _backpack_gradients(lean=False)(case).flatten(0, 1).flatten(1)
    return rows @ rows.mT


CONTENDERS: dict[str, dict[str, Compute]] = {
    "per_sample_grad": {
        "ours": _ours("per_sample_grad"),
        "backpack": _backpack_gradients(lean=False),
        "backpack, saving memory": _backpack_gradients(lean=True),
        "torch.func": _torch_func_gradients,
    },
    "per_sample_grad_norm": {
        "ours": _ours("per_sample_grad_norm"),
        "backpack": _backpack_norm,
    },
    "ggn_diagonal": {"ours": _ours("ggn_diagonal"), "backpack": _backpack_diagonal},
    "ggn_gram": {"ours": _ours("ggn_gram"), "gradients": _gram_of_gradients},
}


def reference(quantity: str, case: Case) -> Tensor:
    """The quantity in float64, by unfolding one sample at a time."""
    vectors = case.vectors.double()
    vectors = vectors[None] if quantity.startswith("per_sample") else vectors
    groups, rows = case.module.groups, []
    for n, sample in enumerate(case.x.double().split(1)):
        u = unfold_input(case.module, sample)[0].unflatten(0, (groups, -1))
        s = vectors[:, n].flatten(2).unflatten(1, (groups, -1))
        row = torch.einsum("gkp,vgcp->vgck", u, s)
        rows.append(row.reshape(len(vectors), *case.module.weight.shape))
    gradients = torch.stack(rows, dim=1)
    if quantity == "per_sample_grad":
        return gradients[0]
    if quantity == "per_sample_grad_norm":
        return gradients[0].flatten(1).square().sum(1)
    if quantity == "ggn_diagonal":
        return gradients.square().sum((0, 1))
    matrix = gradients.flatten(0, 1).flatten(1)
    return matrix @ matrix.mT


def make_case(
    layer: Layer, batch_size: int, num_vectors: int | None, seed: int = 0
) -> Case:
    """A layer with normally distributed input and vectors."""
    module = layer.make_module(device="cpu")
    x = make_input(layer.input_shape(batch_size), "cpu", seed)
    shape = (batch_size, layer.conv.out_channels, *layer.conv.output_size)
    lead = () if num_vectors is None else (num_vectors,)
    vectors = make_input((*lead, *shape), "cpu", seed + 1)
    # what BackPACK's hooks store
    module.input0, module.output = x, x.new_empty(1).expand(shape)
    return Case(module, x, vectors)


def prepare_for_memory(
    quantity: str, name: str, layer: Layer, batch_size: int, num_vectors: int | None
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The computation on two samples, as a warm-up, and on the batch."""
    compute = CONTENDERS[quantity][name]
    small, case = (make_case(layer, size, num_vectors) for size in (2, batch_size))
    return (lambda: compute(small)), (lambda: compute(case))


def measure(
    quantity: str,
    layer: Layer,
    batch_size: int,
    num_vectors: int | None,
    rounds: int,
    with_memory: bool,
) -> dict[str, Any]:
    """Check, time and weigh all contenders on one layer; a record for the JSON file."""
    case = make_case(layer, batch_size, num_vectors)
    exact = reference(quantity, case)
    scale = exact.square().mean().sqrt()
    outcomes: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, compute in CONTENDERS[quantity].items():
        try:
            result = compute(case).double()
        except Exception as reason:  # whatever stops a toolkit is a result
            outcomes[name] = {"reason": f"{type(reason).__name__}: {reason}"[:200]}
            continue
        difference = (result.reshape(exact.shape) - exact).abs().max()
        outcomes[name] = {"error": float(difference / scale)}
        calls[name] = lambda compute=compute: compute(case)  # type: ignore[misc]
    del exact
    seconds = medians(time_side_by_side(calls, rounds))
    for name in calls:
        outcomes[name]["seconds"] = seconds[name]
        outcomes[name]["ratio"] = seconds[name] / seconds["ours"]
        if with_memory:
            prepare = partial(
                prepare_for_memory, quantity, name, layer, batch_size, num_vectors
            )
            try:
                outcomes[name]["memory_bytes"] = peak_memory(prepare)
            except MemoryNotMeasured as reason:
                outcomes[name]["reason"] = f"memory: {reason}"
    arguments = {} if num_vectors is None else {"num_vectors": num_vectors}
    conv = conv_of(case.module, case.x)
    plan = functional.plan(quantity, case.x, conv, **arguments)  # type: ignore[arg-type]
    return {
        "quantity": quantity,
        "layer": layer.name,
        "family": layer.family,
        "batch_size": batch_size,
        "num_vectors": num_vectors,
        "plan": plan.summary,
        "contenders": outcomes,
    }


def render(content: dict[str, Any]) -> str:
    """A Markdown report of all records."""
    metadata, records = content["metadata"], content["records"]
    lines = ["# Per-sample gradients, GGN diagonals and Gram matrices", ""]
    lines += [f"- {key}: {value}" for key, value in metadata.items()]
    cases = dict.fromkeys((r["quantity"], r["num_vectors"]) for r in records)
    for quantity, num_vectors in cases:
        chosen = [
            record
            for record in records
            if (record["quantity"], record["num_vectors"]) == (quantity, num_vectors)
        ]
        names = [name for name in CONTENDERS[quantity] if name != "ours"]
        title = quantity if num_vectors is None else f"{quantity}, V = {num_vectors}"
        head = ["layer", "ours ms", *(f"{name} x" for name in names)]
        head += ["MiB ours", *(f"MiB {name}" for name in names), "error", "plan"]
        table = [head, ["---"] * len(head)]
        for record in chosen:
            found = [record["contenders"].get(name, {}) for name in ("ours", *names)]
            table.append(
                [
                    record["layer"],
                    _number(found[0].get("seconds"), 1e3),
                    *(_number(one.get("ratio")) for one in found[1:]),
                    *(_number(one.get("memory_bytes"), 2**-20) for one in found),
                    f"{found[0].get('error', float('nan')):.1e}",
                    record["plan"],
                ]
            )
        means = ["geometric mean", ""]
        for name in names:
            ratios = [
                ratio
                for record in chosen
                if (ratio := record["contenders"].get(name, {}).get("ratio"))
            ]
            means.append(_number(geometric_mean(ratios) if ratios else None))
        table.append([*means, *[""] * (len(head) - len(means))])
        lines += ["", f"## {title}", ""]
        lines += ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join(lines) + "\n"


def _number(value: float | None, factor: float = 1.0) -> str:
    return "" if value is None else f"{value * factor:.3g}"


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure what the command line asks for; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quantities", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--quantity", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    add("--batch-size", type=int, default=8)
    add("--num-vectors", nargs="+", type=int, default=[1, 10])
    add("--layers", nargs="+", metavar="TEXT", help="only layers whose name has it")
    add("--rounds", type=int, default=5, help=f"at least {MIN_ROUNDS} (default: 5)")
    add("--threads", type=int, default=2)
    add("--no-memory", action="store_true", help="leave peak memory out")
    add("--quick", action="store_true", help="two samples, one layer a family")
    add("--output", type=Path, default=RESULTS / "quantities_cpu.json")
    args = parser.parse_args(arguments)
    if args.rounds < MIN_ROUNDS:
        parser.error(f"--rounds must be at least {MIN_ROUNDS}, got {args.rounds}")
    torch.set_num_threads(args.threads)
    preload("experiments.quantities")

    quick = args.quick and not args.layers
    found = smallest_of_each_family() if quick else select(args.layers)
    # neither contender defines them for transposed convolutions
    layers = [layer for layer in found if layer.family != "transposed"]
    cases = [
        (quantity, num_vectors, layer)
        for quantity in args.quantity
        for num_vectors in (args.num_vectors if quantity.startswith("ggn") else [None])
        for layer in layers
    ]
    records: list[dict[str, Any]] = []
    content = {
        "metadata": machine.describe(torch.device("cpu"))
        | {"dtype": "float32", "rounds": args.rounds},
        "records": records,
    }
    with tqdm(cases, unit="layer", disable=None) as progress:
        for quantity, num_vectors, layer in progress:
            progress.set_postfix_str(f"{quantity} V={num_vectors} {layer.name}")
            batch_size = 2 if args.quick else args.batch_size
            records.append(
                measure(
                    quantity,
                    layer,
                    batch_size,
                    num_vectors,
                    args.rounds,
                    not args.no_memory,
                )
            )
            # a long run that is cut short still leaves what it has measured
            storage.write_json(args.output, content)
    markdown = args.output.with_suffix(".md")
    storage.write_text(markdown, render(content))
    print(f"{args.output}\n{markdown}")
    return Path(args.output)


if __name__ == "__main__":
    main()
