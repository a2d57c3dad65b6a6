"""How fast, lean and exact are KFAC's input factors on real networks' layers?

``python -m experiments.factors --help`` lists the options. Writes JSON and, from it, a
Markdown report beside it.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments import machine, report, storage
from experiments.accuracy import framed, reference, relative_error
from experiments.contenders import (
    CONTENDERS,
    QUANTITIES,
    Quantity,
    Unsupported,
    make_input,
    plan_summary,
    prepare_for_memory,
)
from experiments.layers import LAYERS, Layer, select, smallest_of_each_family
from experiments.measure import (
    MIN_ROUNDS,
    Call,
    MemoryNotMeasured,
    medians,
    number_of_rounds,
    peak_memory,
    preload,
    time_side_by_side,
)

RESULTS = Path(__file__).parent / "results"


@dataclass
class Outcome:
    """What one contender did on one layer; ``None`` where ``reason`` says why.

    Args:
        seconds: Median time of a call.
        ratio: That time over ours.
        rounds: The times of all rounds.
        memory_bytes: Peak memory beyond inputs and result.
        error: Relative error of a normal input.
        error_framed: Relative error of an input with a large border.
        reason: Why something is missing.
    """

    seconds: float | None = None
    ratio: float | None = None
    rounds: list[float] = field(default_factory=list)
    memory_bytes: int | None = None
    error: float | None = None
    error_framed: float | None = None
    reason: str | None = None


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure what the command line asks for.

    Args:
        arguments: The command line. Default: the process's.

    Returns:
        Path of the JSON file.
    """
    args = _parse(arguments)
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    # convolutions would round their inputs to 10 bits on CUDA, matrix products not
    torch.backends.cudnn.allow_tf32 = False
    preload("experiments.contenders")

    layers = select(args.layers)
    if args.quick and not args.layers:
        layers = smallest_of_each_family()
    batch_sizes = [2] if args.quick else args.batch_size
    cases = [
        (quantity, batch_size, layer)
        for quantity in args.quantity
        for batch_size in batch_sizes
        for layer in layers
    ]
    metadata = machine.describe(device) | {
        "dtype": "float32",
        "rounds": args.rounds,
        "input_seed": args.seed,
        "all_layers": layers == LAYERS,
        "note": "float32 without TF32; contiguous inputs",
    }
    records = []
    with tqdm(cases, unit="layer", disable=None) as progress:
        for quantity, batch_size, layer in progress:
            progress.set_postfix_str(f"{quantity} N={batch_size} {layer.name}")
            records.append(
                measure_layer(
                    quantity,
                    layer,
                    batch_size,
                    device,
                    rounds=args.rounds,
                    contenders=args.contenders,
                    with_memory=not args.no_memory,
                    seed=args.seed,
                )
            )
            # a long run that is cut short still leaves what it has measured
            content = {"metadata": metadata, "records": records}
            storage.write_json(args.output, content)
    markdown = report.write([args.output])
    print(f"{args.output}\n{markdown}")
    return Path(args.output)


def measure_layer(
    quantity: Quantity,
    layer: Layer,
    batch_size: int,
    device: torch.device,
    rounds: int,
    contenders: Sequence[str] | None = None,
    with_memory: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Check, time and weigh all contenders on one layer.

    Args:
        quantity: What to compute.
        layer: The convolution.
        batch_size: Number of samples.
        device: Where to compute.
        rounds: Number of alternating rounds.
        contenders: Names of stock contenders. Default: all.
        with_memory: Whether to measure memory.
        seed: Seed of the input.

    Returns:
        A record for the JSON file.
    """
    module = layer.make_module(device="meta")
    x = make_input(layer.input_shape(batch_size), device, seed)
    names = [
        name
        for name in CONTENDERS[quantity]
        if name == "ours" or contenders is None or name in contenders
    ]
    outcomes = {name: Outcome() for name in names}

    for attribute, inputs in (("error", x), ("error_framed", framed(x))):
        exact = reference(quantity, module, inputs)
        for name in names:
            try:
                result = CONTENDERS[quantity][name](module, inputs)()
            except Exception as reason:  # whatever stops a toolkit is a result
                outcomes[name].reason = _one_line(reason)
                continue
            setattr(outcomes[name], attribute, relative_error(result, exact))
        del exact, inputs

    able = [name for name in names if outcomes[name].reason is None]
    calls: dict[str, Call] = {n: CONTENDERS[quantity][n](module, x) for n in able}
    times = time_side_by_side(calls, rounds, device)
    seconds = medians(times)
    for name in able:
        outcome = outcomes[name]
        outcome.rounds, outcome.seconds = times[name], seconds[name]
        if "ours" in seconds:
            outcome.ratio = seconds[name] / seconds["ours"]
    plan = plan_summary(quantity, module, x) if "ours" in able else None
    del calls, x
    gc.collect()

    for name in able if with_memory else ():
        prepare = partial(
            prepare_for_memory,
            quantity,
            name,
            layer.make_module,
            layer.input_shape(batch_size),
            device,
        )
        try:
            outcomes[name].memory_bytes = peak_memory(prepare, device)
        except MemoryNotMeasured as reason:
            outcomes[name].reason = f"memory: {_one_line(reason)}"

    return {
        "quantity": quantity,
        "batch_size": batch_size,
        "layer": _describe_layer(layer),
        "plan": plan,
        "contenders": {name: asdict(outcome) for name, outcome in outcomes.items()},
    }


def _describe_layer(layer: Layer) -> dict[str, Any]:
    conv = layer.conv
    return {
        "name": layer.name,
        "network": layer.network,
        "family": layer.family,
        "count": layer.count,
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "input_size": list(layer.input_size),
        "kernel_size": list(conv.kernel_size),
        "stride": list(conv.stride),
        "groups": conv.groups,
    }


def _one_line(error: Exception) -> str:
    text = str(error).partition("\n")[0][:200]
    expected = isinstance(error, Unsupported | MemoryNotMeasured)
    return text if expected else f"{type(error).__name__}: {text}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.factors", description=__doc__.splitlines()[0]
    )
    stock = sorted({name for names in CONTENDERS.values() for name in names} - {"ours"})
    add = parser.add_argument
    add("--quantity", nargs="+", choices=QUANTITIES, default=list(QUANTITIES))
    add("--batch-size", nargs="+", type=int, default=[8, 32])
    add("--layers", nargs="+", metavar="TEXT", help="only layers whose name has it")
    add("--contenders", nargs="+", choices=stock, help="stock ways (default: all)")
    add(
        "--rounds",
        type=number_of_rounds,
        default=7,
        help=f"at least {MIN_ROUNDS} (default: 7)",
    )
    add("--device", default="cpu")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--no-memory", action="store_true", help="leave peak memory out")
    add("--quick", action="store_true", help="two samples, one layer a family")
    add("--output", type=Path, default=None, help="JSON file to write")
    args = parser.parse_args(arguments)
    if args.output is None:
        args.output = RESULTS / f"factors_{torch.device(args.device).type}.json"
    return args


if __name__ == "__main__":
    main()
