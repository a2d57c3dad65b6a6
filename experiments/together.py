"""Compare several quantities of a layer evaluated together with each on its own.

``python -m experiments.together --help`` lists the options. Writes JSON: for each flow
and layer the seconds of :func:`~tn_extensions.functional.together`, and of one function
after the other.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import machine, storage
from experiments.cases import PLANNED
from experiments.measure import medians, number_of_rounds, time_side_by_side
from tn_extensions import Conv, functional, planning

RESULTS = Path(__file__).parent / "results"

LAYERS: dict[str, Conv] = {
    "3-64x224 k7 s2": PLANNED["3-64x224 k7 s2"],
    "64x56 k3": PLANNED["64x56 k3"],
    "128x28 k3": PLANNED["128x28 k3"],
    "512x7 k3": PLANNED["512x7 k3"],
    "96x32 k3 depthwise": Conv.make(96, 96, 3, (32, 32), 1, 1, groups=96),
}
FLOWS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "BatchGrad, BatchL2Grad, SumGradSquared, Variance": (
        ("per_sample_grad", "per_sample_grad_norm", "ggn_diagonal", "weight_vjp"),
        None,
    ),
    "BatchL2Grad, SumGradSquared, Variance": (
        ("per_sample_grad_norm", "ggn_diagonal", "weight_vjp"),
        None,
    ),
    "KFAC, BatchL2Grad": (("kfac_expand", "per_sample_grad_norm"), None),
    "DiagGGN, GGNGram": (("ggn_diagonal", "ggn_gram"), 10),
}
"""The quantities that a flow takes of a kernel, and its number of vectors."""


def measure(flow: str, conv: Conv, batch_size: int, rounds: int) -> dict[str, Any]:
    """Check and time a flow on a layer; a record for the JSON file."""
    asked, vectors = FLOWS[flow]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, conv.in_channels, *conv.input_size, generator=generator)
    shape = (batch_size, conv.out_channels, *conv.output_size)
    leading = () if vectors is None else (vectors,)
    g = torch.randn(*leading, *shape, generator=generator)
    given = {"x": x, "g": g, "S": g if vectors else g[None]}

    def together() -> list[Tensor]:
        return functional.together(*asked, x=x, g=g, conv=conv)

    def apart() -> list[Tensor]:
        found = []
        for name in asked:
            function = getattr(functional, name)
            own = {*inspect.signature(function).parameters} & {*given}
            found.append(function(**{k: given[k] for k in own}, conv=conv))
        return found

    pairs = list(zip(together(), apart(), strict=True))
    error = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    del pairs
    calls = {"together": together, "apart": apart}
    times = time_side_by_side(calls, rounds)
    seconds = medians(times)
    joint = [name for name in asked if not name.startswith("kfac")]
    plan = functional.plan_together(*joint, x=x, g=g, conv=conv)
    return {
        "flow": flow,
        "seconds": seconds,
        "ratio": seconds["apart"] / seconds["together"],
        "error": error,
        "shared": plan.sharing.title if plan.sharing else None,
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure all flows on all layers; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.together", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--rounds", type=number_of_rounds, default=5)
    add("--threads", type=int, default=2)
    add("--batch", type=int, default=8)
    add("--mode", choices=["estimate", "measure"], default="measure")
    add("--output", type=Path, default=RESULTS / "together_cpu.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    metadata = machine.describe(torch.device("cpu"))
    metadata |= {"dtype": "float32", "batch": args.batch, "rounds": args.rounds}
    metadata["mode"] = args.mode
    records: list[dict[str, Any]] = []
    with planning(args.mode), torch.no_grad():
        for name, conv in LAYERS.items():
            for flow in FLOWS:
                record = measure(flow, conv, args.batch, args.rounds)
                records.append({"layer": name, **record})
                storage.write_json(
                    args.output, {"metadata": metadata, "records": records}
                )
                print(f"{name}: {flow}: {record['ratio']:.2f}, {record['shared']}")
    return args.output


if __name__ == "__main__":
    main()
