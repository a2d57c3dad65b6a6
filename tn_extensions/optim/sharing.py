"""Inverses, products and states of all layers, by the processes that have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tn_extensions.optim.distributed import Processes
from tn_extensions.optim.layer import Layer
from tn_extensions.optim.state import from_state, to_state

Layers = Mapping[str, Layer]


def update_inverses(layers: Layers, due: Sequence[Layer], processes: Processes) -> None:
    """Invert averages, and send inverses to the processes that multiply by them.

    Args:
        layers: All layers.
        due: Those to be inverted, the same in all processes.
        processes: The processes.
    """
    for layer in due:
        layer.is_inverted = True
    own = {layer.name: layer for layer in due if processes.inverts(layer.name)}
    for layer in own.values():
        layer.invert()
    if processes.size == 1:
        return
    if processes.is_sharded:
        _share_bases(due, processes)
        return
    corrected = {layer.name for layer in due if layer.options.eigenvalue_correction}
    # moments of all processes' data are in the same basis
    for everywhere in (True, False):
        states = {
            name: to_state(layer.decomposition)
            for name, layer in own.items()
            if (name in corrected) == everywhere
        }
        if not everywhere or corrected:
            for name, state in processes.share(states, everywhere).items():
                layers[name].receive(from_state(state))


def _share_bases(layers: Iterable[Layer], processes: Processes) -> None:
    """Send eigenbases to all processes, whose data have moments in them.

    Args:
        layers: Layers, the same in all processes.
        processes: The processes, which share parameters.
    """
    corrected = {
        layer.name: layer for layer in layers if layer.options.eigenvalue_correction
    }
    if not corrected:
        return
    states = {
        name: own.bases and dict(zip(("left", "right"), own.bases, strict=True))
        for name, own in corrected.items()
        if processes.inverts(name)
    }
    for name, bases in processes.share(states, everywhere=True).items():
        if not processes.inverts(name):
            corrected[name].receive(bases and (bases["left"], bases["right"]))


def preconditioned(
    layers: Layers, processes: Processes
) -> Iterable[tuple[str, Mapping[str, Tensor]]]:
    """Multiply gradients by the inverses.

    Returns:
        The products by layer and parameter; of sharded ones this process's parts.
    """
    if processes.is_sharded:
        gradients = {name: layer.gradients for name, layer in layers.items()}
        exchange = processes.exchange(gradients)
        new = {
            name: layers[name].preconditioned(whole)
            for name, whole in exchange.gather().items()
        }
        return exchange.scatter(new).items()
    own = (
        (name, layer.preconditioned(layer.gradients))
        for name, layer in layers.items()
        if processes.multiplies(name)
    )
    if processes.has_all_inverses:
        return own
    likes = {name: layer.parameters for name, layer in layers.items()}
    return processes.share_gradients(dict(own), likes).items()


# -- states


def needed(layers: Layers, processes: Processes) -> list[str]:
    """Return the names of the layers whose state this process holds."""
    return [n for n in layers if processes.inverts(n) or not processes.is_sharded]


def states_of(layers: Layers, processes: Processes) -> dict[str, Any]:
    """Return the states of all layers, or of those that this process holds.

    Inverses that are split between processes are gathered, but for sharded parameters.
    """
    own = needed(layers, processes)
    is_split = not (processes.is_sharded or processes.has_all_inverses)
    inverses = {
        name: to_state(layers[name].inverse)
        for name in own
        if processes.inverts(name) or not is_split
    }
    if is_split:
        inverses = processes.share(inverses, everywhere=True)
    return {name: layers[name].state(inverses[name]) for name in own}


def unlike(
    layers: Layers, states: Mapping[str, Any], processes: Processes
) -> list[str]:
    """Return the names at which states are of other layers, or lacking."""
    own = needed(layers, processes)
    return [
        name
        for name in {**layers, **states}
        if name not in layers
        or (name in own and name not in states)
        or (name in states and not layers[name].accepts(states[name]))
    ]


def load_states(
    layers: Layers, states: Mapping[str, Any], processes: Processes, has_begun: bool
) -> None:
    """Load states of layers.

    Args:
        layers: All layers.
        states: Their states, at least those that this process holds.
        processes: The processes.
        has_begun: Whether steps had been taken.
    """
    own = needed(layers, processes)
    for name, layer in layers.items():
        if name not in own:
            layer.forget()
            layer.is_elsewhere = layer.is_inverted = has_begun
            continue
        layer.load(states[name])
        if not processes.multiplies(name):
            layer.inverse = None
    if processes.is_sharded:
        _share_bases(layers.values(), processes)
