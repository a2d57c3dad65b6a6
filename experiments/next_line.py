"""Compare the speed of KFAC on curvlinops' next line: our backend and its own.

``python -m experiments.next_line --help`` lists the options. Writes JSON. Needs
curvlinops from its repository, as it is not released yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from curvlinops import EKFACLinearOperator, KFACLinearOperator
from torch import Tensor, nn

from experiments import machine, storage
from experiments.measure import MIN_ROUNDS, medians, time_side_by_side
from experiments.models import Subject
from tn_extensions.kronecker.factors import trace

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-3
"""Largest relative difference of traces; eigenvectors may differ by rounding."""
KINDS = {
    "expand": (KFACLinearOperator, "expand"),
    "reduce": (KFACLinearOperator, "reduce"),
    "ekfac": (EKFACLinearOperator, "expand"),
}
BACKENDS = ("tn", "hooks", "make_fx", "compiled")
"""``"compiled"``: what ``make_fx`` traced, compiled; without the time to do it."""


def contenders(
    kind: str, subject: Subject, batch_size: int, backends: Sequence[str]
) -> dict[str, Callable[[], Any]]:
    """Return calls that build factors, by backend, and one of the gradient alone."""
    model, (images, labels) = subject.plain(), subject.batch(batch_size)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    wanted = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    params = {n: p for n, p in model.named_parameters() if id(p) in wanted}
    operator, approx = KINDS[kind]

    def computer(backend: str) -> Any:
        # ours as our operators call it: factors of few data stay vectors
        options = {"groups": "separate"} if backend == "tn" else {}
        return operator._BACKENDS[backend](
            model,
            nn.CrossEntropyLoss(),
            params,
            [(images, labels)],
            fisher_type="empirical",
            kfac_approx=approx,
            check_deterministic=False,
            num_data=batch_size,
            num_per_example_loss_terms=1,
            **options,
        )

    def gradient() -> Any:
        loss = nn.functional.cross_entropy(model(images), labels)
        return torch.autograd.grad(loss, [*params.values()])

    calls: dict[str, Callable[[], Any]] = {"gradient": gradient}
    for backend in backends:
        if backend == "compiled":
            calls[backend] = _compiled(computer("make_fx"))
        else:
            calls[backend] = computer(backend).compute
    return calls


def _compiled(computer: Any) -> Callable[[], Any]:
    traced, mapping = computer._trace_batch_functions()
    compiled = {size: torch.compile(traced[size]) for size in traced}
    return lambda: computer._compute_kronecker_factors((compiled, mapping))


def traces(found: Sequence[Any]) -> Tensor:
    """Compute traces of all factors; of EKFAC's blocks, by corrected eigenvalues."""
    left, right, *others, _ = found
    if others:
        return torch.stack([one.sum() for _, one in sorted(others[0].items())])
    values = [one for own in (left, right) for _, one in sorted(own.items())]
    # without groups, factors have no axis for them
    return torch.stack(
        [trace(each.reshape(-1, *each.shape[-2:])).sum() for each in values]
    )


def measure(
    kind: str, subject: Subject, batch_size: int, backends: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Compare, then time."""
    calls = contenders(kind, subject, batch_size, backends)
    first = traces(calls[backends[0]]())
    for name in backends[1:]:
        error = float((traces(calls[name]()) / first - 1).abs().max())
        if not error < TOLERANCE:
            raise AssertionError(f"{kind}, {name}: traces differ by {error}")
    seconds = medians(time_side_by_side(calls, rounds, min_rounds=3))
    return {
        "kind": kind,
        "network": subject.title,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "speed": {name: seconds[name] / seconds["tn"] for name in backends},
        "over_gradient": {
            name: seconds[name] / seconds["gradient"] for name in backends
        },
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure what is asked for; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.next_line", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    add("--backends", nargs="+", choices=BACKENDS, default=[*BACKENDS])
    add("--pixels", type=int, default=224)
    add("--batch-sizes", type=int, nargs="+", default=[8])
    add("--threads", type=int, default=torch.get_num_threads())
    add("--rounds", type=int, default=MIN_ROUNDS)
    add("--output", type=Path, default=RESULTS / "next-line-cpu.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    metadata = machine.describe(torch.device("cpu"))
    records = []
    for batch_size in args.batch_sizes:
        for kind in args.kinds:
            subject = Subject("resnet18", args.pixels)
            record = measure(kind, subject, batch_size, args.backends, args.rounds)
            print(record, flush=True)
            records.append(record)
            storage.write_json(args.output, {"metadata": metadata, "records": records})
    return args.output


if __name__ == "__main__":
    main()
