"""Which axes are worth sampling, and what does tensor dropout save and lose?

An error is the Frobenius norm of the sampled gradient of a layer's weight less the
exact one, over that of the exact one, a mean over draws. Several axes have equal
shares, whose product is the share of the layer's input that is kept. An estimate of
zero has the error 1. `the batch itself` is the gradient of all training images in place
of the sampled one. `untrained All-CNN-C` is the paper's figure, on images and on noise;
the trained CNN is small, after so many steps of SGD. Each way to train gets as many
trials of its learning rate, and runs again from other seeds. ReLU holds the next
layer's input for itself, SiLU its own input, masked ReLU a byte for each entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from experiments.contenders.dropout import (
    Axes,
    MaskedReLU,
    batch_error,
    named,
    operands_of,
    sampled_cnn,
    sampling_errors,
    saved_bytes,
    spread,
)
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.measure import Call, Prepared
from experiments.harness.question import Claim, Question
from experiments.harness.ratios import Ratio, curves
from experiments.subjects.images import Split, find_images
from experiments.subjects.networks import Subject
from experiments.subjects.training import Recipe, Setting, shuffled, train, tuned
from tn_extensions.dropout import convert
from tn_extensions.sampling import SAMPLERS

SHARES = (0.1, 0.25, 0.4, 0.5, 0.75, 0.9)
SHOWN = 0.5
"""The share that tables of errors are of."""
DATA = ("digits", "fashion-mnist")
ALL_CNN_C = {"first": "0", "early": "2", "middle": "8", "late": "12"}
LAYERS = ("early", "middle", "late")
STAGES = (10, 100)
"""Steps after which errors of a training are measured."""
BATCH = "the batch itself"
"""In place of sampled axes: the error that a batch has without sampling."""

TIMED: dict[str, tuple[nn.Conv2d, int]] = {
    "64x28 k3": (nn.Conv2d(64, 64, 3, padding=1), 28),
    "64x56 k3": (nn.Conv2d(64, 64, 3, padding=1), 56),
    "128x28 k3": (nn.Conv2d(128, 128, 3, padding=1), 28),
    "96x32 k3": (nn.Conv2d(96, 96, 3, padding=1), 32),
    "64x56 k3 s2": (nn.Conv2d(64, 128, 3, stride=2, padding=1), 56),
    "3x224 k7 s2": (nn.Conv2d(3, 64, 7, stride=2, padding=3), 224),
    "256x28 k1": (nn.Conv2d(256, 256, 1), 28),
    "depthwise 96x56 k3": (nn.Conv2d(96, 96, 3, padding=1, groups=96), 56),
}
"""Layers, and pixels per side of their input."""
TIMED_AXES: tuple[Axes, ...] = (
    ("n", "ci"),
    ("n", "i1"),
    ("ci", "i1"),
    ("n", "i2"),
    ("i1", "i2"),
    ("n", "o1"),
)
"""Half of each axis is kept."""

EXACT = "exact"
WAYS: dict[str, dict[str, float]] = {EXACT: {}} | {
    f"{named(axes)}, {share:g}": spread(axes, share)
    for axes, shares in {
        ("n",): (0.75, 0.5, 0.25),
        ("n", "ci"): (0.75, 0.5, 0.25),
        ("ci",): (0.5,),
        ("i1", "i2"): (0.5,),
    }.items()
    for share in shares
}
"""Ways to train: shares of the layers' inputs that they keep, by index."""
LEARNING_RATES = (0.005, 0.01, 0.02, 0.03)
SEARCH_SEEDS, SEEDS = (0, 4, 7, 8, 9), (1, 2, 3, 5, 6)
"""So many, as it takes, to see that one run of a few never starts to learn."""


def cases(options: Options) -> Iterator[Case]:
    """List errors of gradients, times and bytes of layers, and trainings."""
    quick = options.quick
    data = DATA[:1] if quick else DATA
    ways = [EXACT, "n, 0.5"] if quick else list(WAYS)
    case = partial(Case, cpu_only=True)
    for network, measure, names in (
        ("untrained All-CNN-C", _untrained, ("synthetic", *data)),
        ("trained CNN", _trained, data),
    ):
        for name in names:
            key = {"part": "errors", "network": network, "data": name}
            yield case(key, measure, name)
    for layer in list(TIMED)[:1] if quick else TIMED:
        for axes in TIMED_AXES[:2] if quick else TIMED_AXES:
            key = {"part": "layers", "layer": layer, "axes": named(axes)}
            yield case(key, _backward, layer, axes)
    yield case({"part": "bytes"}, _bytes, ways)
    for name in data:
        for way in ways:
            key = {"part": "training", "data": name, "way": way}
            yield case(key, _training, name, way)


def _untrained(name: str, options: Options) -> Iterator[Row]:
    """Measure errors of a network's gradients on a batch of images, or of noise."""
    subject, size = Subject("allcnnc"), 4 if options.quick else 32
    batch = Split(*subject.batch(size))
    if name != "synthetic":
        images = find_images(name).train.images[:size]
        images = interpolate(images, (subject.pixels,) * 2, mode="bilinear")
        batch = batch._replace(images=images.expand(-1, 3, -1, -1).contiguous())
    model = subject.plain()
    torch.manual_seed(0)
    for layer, module in ALL_CNN_C.items():
        for row in _errors(model, module, batch, SAMPLERS[:1], options):
            yield {"layer": layer, "step": 0, **row}


def _trained(name: str, options: Options) -> Iterator[Row]:
    """Measure errors of layers' gradients at stages of a training."""
    data, stages = find_images(name), (2,) if options.quick else STAGES
    make_model = partial(sampled_cnn, data.pixels, {})
    setting = Setting(data, 150, make_model, 1, 1)
    images, labels = data.train
    model = setting.model(seed=0)
    chosen = next(shuffled(len(labels), setting.batch_size, seed=1))
    batch = Split(images[chosen], labels[chosen])
    for point in train(model, Recipe("SGD", 0.02), setting, 0):
        if point["step"] not in stages:
            continue
        for layer in LAYERS:
            place = {"layer": layer, "step": point["step"]}
            error = batch_error(model, layer, batch, data.train)
            yield {**place, "axes": BATCH, "error": error, "asked": SHOWN}
            for row in _errors(model, layer, batch, SAMPLERS, options):
                yield {**place, **row}
        if point["step"] == stages[-1]:
            return


def _errors(
    model: nn.Module, layer: str, batch: Split, samplers: Any, options: Options
) -> Iterator[Row]:
    shares: Sequence[float] = (0.25, 0.5) if options.quick else SHARES
    draws = 2 if options.quick else 6
    yield from sampling_errors(
        operands_of(model, layer, batch), shares, samplers, draws
    )


def _backward(name: str, axes: Axes, options: Options) -> Iterator[Row]:
    """Time torch's backward pass through a layer, and that of the converted layer."""
    layer, pixels = TIMED[name]
    keep = dict.fromkeys(axes, 0.5)
    if layer.groups == layer.in_channels:  # its channels are groups
        keep = {"g" if index == "ci" else index: 0.5 for index in axes}
    x = torch.randn(8, layer.in_channels, pixels, pixels, requires_grad=True)
    layers = {
        "stock": layer,
        "ours": convert(deepcopy(layer), keep, sampler="fixed"),
    }
    g = torch.randn_like(layer(x))
    outputs: dict[str, Tensor] = {}

    def forward(name: str) -> None:
        outputs[name] = layers[name](x)

    def backward(name: str) -> tuple[Tensor, ...]:
        weight, bias = layers[name].parameters()
        # what is compared is exact: the weight's gradient is an estimate
        return torch.autograd.grad(outputs[name], (x, bias, weight), g)[:2]

    def build(name: str, small: bool) -> Call:
        return Prepared(partial(forward, name), partial(backward, name))

    contest = Contest(
        {name: partial(build, name) for name in layers},
        notes=lambda name: {"saved": saved_bytes(layers[name], x) / x.nbytes},
        weighed=False,
    )
    yield from contest.rows(options)


def _bytes(ways: list[str], options: Options) -> Iterator[Row]:
    """Count what is saved for the backward pass of a batch of digits."""
    batch = find_images("digits").train.images[:64]
    for activation in (MaskedReLU, nn.SiLU, nn.ReLU):
        for way in ways:
            model = sampled_cnn(batch.shape[-1], WAYS[way], activation)
            saved = saved_bytes(model, batch)
            yield {"way": way, "activation": activation.__name__, "bytes": saved}


def _training(name: str, way: str, options: Options) -> Iterator[Row]:
    """Tune a way to train, and train."""
    data = find_images(name)
    make_model = partial(sampled_cnn, data.pixels, WAYS[way])
    setting = Setting(data, 150, make_model, 25, 1024)
    grid = [Recipe("SGD", lr) for lr in LEARNING_RATES]
    if options.quick:
        setting = replace(setting, steps=6, evaluate_every=3, num_evaluated=128)
        yield from tuned(setting, [grid[-1:]], (0,), (1,))
    else:
        yield from tuned(setting, [grid], SEARCH_SEEDS, SEEDS)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise trainings: ends of runs, and points of accuracy lost."""
    runs = rows[rows["phase"] == "run"]
    last = runs.groupby(["data", "way", "seed"], sort=False).last()
    last["ms a step"] = 1e3 * last["seconds"] / last["step"]
    grouped = last.groupby(["data", "way"], sort=False)
    found = grouped[["loss", "accuracy", "ms a step"]].mean()
    found["accuracy +-"] = grouped["accuracy"].std()
    exact = found["accuracy"].xs(EXACT, level="way")
    found["points lost"] = 100 * (found["accuracy"].rsub(exact, level="data"))
    return found.assign(options=grouped["options"].first())


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate errors at one share, backward passes, saved bytes and trainings."""
    found = {}
    parts = {str(part): own for part, own in rows.groupby("part")}
    if "errors" in parts:
        errors = parts["errors"].query("asked == @SHOWN")
        drawn = errors[errors["sampler"].isin([SAMPLERS[0], float("nan")])]
        for network, own in drawn.groupby("network", sort=False):
            columns = ["data", "layer", "step"]
            table = own.pivot_table("error", "axes", columns, sort=False)
            found[f"Errors at a share of {SHOWN:g}: {network}"] = table
        trained = errors[errors["step"] > 0]
        table = trained.pivot_table("error", "axes", "sampler", sort=False)
        found["Errors of samplers, trained CNN, means over layers"] = table
    if "layers" in parts:
        layers, index = parts["layers"], ["layer", "axes"]
        ours = layers[layers["contender"] == "ours"].set_index(index)
        ratios = {
            "stock / ours": Ratio(index).of(layers),
            "saved share": ours["saved"],
        }
        title = "Time of torch's backward pass over ours, half of each axis"
        found[title] = pd.DataFrame(ratios).reindex(ours.index)
    if "bytes" in parts:
        table = parts["bytes"].pivot_table("bytes", "way", "activation", sort=False)
        found["KiB saved for a backward pass"] = table / 2**10
    if "training" in parts:
        found["Trainings"] = summary(rows)
    return found


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Plot errors against the share that is kept: a row of panels for each network."""
    errors = rows[(rows["part"] == "errors") & (rows["sampler"] == SAMPLERS[0])]
    found = {}
    for network, own in errors.groupby("network", sort=False):
        own = own[own["step"] == own["step"].max()]
        figure, axes = curves(own, "data", "layer", "share", "error", "axes")
        for axis in axes.values():
            axis.axhline(1, color="gray", linewidth=0.8)  # all is lost
        found["-".join(str(network).lower().split())] = figure
    return found


def _space_over_channels(rows: pd.DataFrame) -> float:
    """Compare errors of sampled pixels and of sampled channels, on real images."""
    own = rows[(rows["network"] == "untrained All-CNN-C") & (rows["asked"] == SHOWN)]
    own = own[(own["data"] != "synthetic") & (own["layer"] != "first")]
    errors = own.groupby("axes")["error"].mean()
    return float(errors["i1 x i2"] / errors["ci"])


def _points_lost(way: str, rows: pd.DataFrame) -> float:
    return float(summary(rows)["points lost"].xs(way, level="way").max())


QUESTION = Question(
    __doc__,
    cases,
    tables,
    figures,
    claims=(
        Claim(
            "Untrained, on images: error of sampled pixels over that of channels",
            _space_over_channels,
            "at most",
            1,
        ),
        *(
            Claim(
                f"Training keeps {way} of the input: points of accuracy lost",
                partial(_points_lost, way),
                "at most",
                1,
            )
            for way in WAYS
            if way != EXACT
        ),
    ),
)
