"""KFAC as a preconditioner for gradients of any optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from logging import getLogger
from os import PathLike
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tn_extensions.errors import describe
from tn_extensions.layers.hooks import unwrapped
from tn_extensions.optim.checkpoint import read_state
from tn_extensions.optim.find import find_layers
from tn_extensions.optim.gradients import not_finite, replace_gradients
from tn_extensions.optim.layer import Layer
from tn_extensions.optim.metrics import StepMetrics
from tn_extensions.optim.observer import Observer
from tn_extensions.optim.options import (
    Approx,
    Clipping,
    Curvature,
    Damping,
    DampingMethod,
    Distributed,
    Fisher,
    LayerOptions,
    NormLayers,
    Number,
    Options,
    Reduction,
    Schedule,
    check_loss,
    number_at,
)
from tn_extensions.optim.sharded import local_part, processes_of, reshard
from tn_extensions.optim.statistics import all_finite

LOG = getLogger("tn_extensions.optim")
VERSION = 1
"""Version of the state."""


class KFACPreconditioner:
    """Replace gradients by gradients that are preconditioned with KFAC.

    In a training loop::

        loss.backward()
        preconditioner.step()
        optimizer.step()

    The gradient ``V`` of a layer, a matrix ``[CO, D]`` for each group of channels,
    becomes ``(B + b I)^-1 V (A + a I)^-1``. With patches ``U`` (ending with a one if
    there is a bias), gradients ``g`` of each datum's loss by the outputs, ``S``
    positions that share the weight, and ``N`` data, the factors of KFAC-expand are ``A
    = 1/(N S) sum U U^T`` and ``B = 1/N sum g g^T``. KFAC-reduce replaces ``U`` by means
    and ``g`` by sums over positions, with ``A = 1/N sum u u^T`` for means ``u``. Both
    factors are exponential moving averages, of float32 or wider. Other parameters keep
    their gradient.

    Supported layers are ``Linear``, convolutions and transposed convolutions with any
    hyper-parameters, also if they are used several times in a forward pass. Layers keep
    their gradient if they are frozen, have their own ``forward``, or compute their
    kernel (``weight_norm``, ``parametrize``, ``prune``). Gradient accumulation,
    autocast, gradient checkpointing, ``torch.compile`` and ``DistributedDataParallel``
    are supported.

    Statistics come from the passes that compute the gradients. Layers must be in
    training mode (``model.train()``), and the backward pass must add to ``.grad``, as
    ``loss.backward()`` does and ``torch.autograd.grad`` does not. If gradients are set
    to zero before the step, their statistics are dropped. Several backward passes
    through one graph each add their ``sum g g^T``, but the data count once. Use
    :meth:`pause` to ignore passes.

    ``N`` is the length of the model's first input. The rows of a layer's input may be a
    multiple of ``N``, such as frames or windows folded into the batch. The rows of a
    datum must be adjacent; they are positions that share the weight. In calls outside
    of the model's ``forward``, each row of a layer's input is a datum.

    Layers without statistics, as they were not called or their input was not a batch,
    keep their gradient. It warns about them.

    Args:
        model: The model. It may be compiled or wrapped in ``DistributedDataParallel``.
        approx: ``"expand"`` or ``"reduce"``.
        fisher: ``"empirical"``: use the gradients of training, without another pass.
            ``"mc"``: sample targets from the model; takes ``mc_samples`` backward
            passes to the layers' outputs. ``"type-2"``: exact; takes as many passes as
            there are classes.
        damping: The damping of the factors, see ``damping_method``; or a ``Damping``
            with value and method. All numbers here and below may be functions of the
            number of steps taken.
        factor_update_steps: Number of steps between updates of the factors.
        inverse_update_steps: Number of steps between updates of the inverses.
        ema_decay: Weight of the former value in moving averages.
        kl_clip: Bound on ``lr^2`` times the inner product of gradients and
            preconditioned gradients. If it is exceeded, preconditioned gradients are
            scaled down. ``None``, also from a function: no bound.
        lr: Learning rate, which only ``kl_clip`` uses.
        eigenvalue_correction: Whether to use EKFAC's eigenvalues: second moments of the
            gradients in the factors' eigenbases (George et al., 2018).
        skip_layers: Regular expressions for names of layers, of modules that contain
            them, or of classes, which keep their gradient. Each must have a match.
        damping_method: ``"pi"``: ``a b = damping``, split by the factors' mean
            eigenvalues (Martens & Grosse, 2015). ``"fixed"``: ``a = b = damping``.
            ``"exact"``: add the damping to ``B (x) A``, in its eigenbasis; EKFAC always
            does this.
        overrides: Options of single layers, by regular expressions as in
            ``skip_layers``: ``approx``, ``damping``, ``damping_method``, ``ema_decay``,
            ``keep``, ``eigenvalue_correction`` or ``norm_layers``.
        keep: ``{"n": share}``: estimate factors from a share of the data, without bias.
            A fixed number of data is sampled for each layer and factor. ``None``: use
            all data.
        loss_func: The loss whose Fisher ``"mc"`` and ``"type-2"`` compute:
            ``CrossEntropyLoss`` (the default), ``MSELoss`` or ``BCEWithLogitsLoss``.
        loss_reduction: Whether the losses that are differentiated between two steps add
            up to the ``"mean"`` over all of their data, or to the ``"sum"``; then ``B =
            sum g g^T``. With gradient accumulation, scale the losses accordingly.
        mc_samples: Number of Monte-Carlo samples per datum and step.
        seed: Seed of all samples.
        grad_scaler: The ``GradScaler``, if the loss is scaled by one. Call its
            ``unscale_`` before ``step``. Steps with overflows are skipped.
        grad_worker_fraction: Share of the processes that multiply by a layer's inverse
            (KAISA). 1: all processes multiply, and inverses are sent. 0: one process
            multiplies, and gradients are sent. Default: 1; with sharded parameters
            (``fully_shard``), 0 is the default and the only choice.
        process_group: The processes. Default: all, or those that share the parameters.
        norm_layers: ``"plain"``: norm layers keep their gradient. ``"unit-wise"``: for
            ``BatchNorm``, ``LayerNorm``, ``GroupNorm`` and ``RMSNorm``, the gradients
            ``v``, ``[2]``, by a scale and its shift become ``(F + damping I)^-1 v``,
            with ``F = 1/N sum u u^T`` for each datum's gradients ``u`` by both (Osawa
            et al., CVPR 2019).
        curvature: ``approx``, ``fisher``, ``eigenvalue_correction``, ``keep``,
            ``loss_func``, ``loss_reduction``, ``mc_samples``, ``seed`` and
            ``norm_layers`` as a group. Arguments must not contradict this or another
            group.
        schedule: ``factor_update_steps``, ``inverse_update_steps`` and ``ema_decay`` as
            a group.
        clipping: ``kl_clip`` and ``lr`` as a group.
        distributed: ``grad_worker_fraction`` and ``process_group`` as a group.

    Attributes:
        steps: Number of steps taken.
        skipped: Number of steps that were skipped, since gradients were not finite.
        last_step: :class:`StepMetrics` of the last step; ``None`` before the first.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a value is not allowed, the model has no supported layer, or
            processes have different models.
        NotImplementedError: If layers share parameters, or parameters are sharded in
            another way than by ``fully_shard`` on a mesh of one axis.

    References: Martens & Grosse, ICML 2015; Grosse & Martens, ICML 2016; Eschenhagen et
    al., NeurIPS 2023; Pauloski et al., SC 2021.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        approx: Approx = "expand",
        fisher: Fisher = "empirical",
        damping: Number | Damping = 1e-3,
        factor_update_steps: Number = 1,
        inverse_update_steps: Number = 1,
        ema_decay: Number = 0.95,
        kl_clip: Number | None = 1e-3,
        lr: Number = 0.1,
        eigenvalue_correction: bool = False,
        skip_layers: Sequence[str] = (),
        damping_method: DampingMethod = "pi",
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        keep: Mapping[str, float] | None = None,
        loss_func: nn.Module | None = None,
        loss_reduction: Reduction = "mean",
        mc_samples: int = 1,
        seed: int = 0,
        grad_scaler: Any = None,
        grad_worker_fraction: float | None = None,
        process_group: Any = None,
        norm_layers: NormLayers = "plain",
        curvature: Curvature | None = None,
        schedule: Schedule | None = None,
        clipping: Clipping | None = None,
        distributed: Distributed | None = None,
    ) -> None:
        arguments = locals()
        self._owner = type(self).__name__
        if not isinstance(model, nn.Module):
            kind, remedy = type(model).__name__, "Pass the model, not its parameters"
            raise TypeError(describe(self._owner, "model", "be a module", kind, remedy))
        self._options = Options.of(self._owner, arguments)
        own = self._options.curvature
        loss = own.loss_func or nn.CrossEntropyLoss()
        if own.fisher != "empirical":
            check_loss(self._owner, loss)
        model = unwrapped(model)
        reshard(model)
        common = LayerOptions.of(self._options)
        self._layers = find_layers(
            self._owner, model, common, skip_layers, overrides or {}
        )
        self._grad_scaler = grad_scaler
        self.steps = 0
        self.skipped = 0
        self.last_step: StepMetrics | None = None
        self._processes = processes_of(
            self._owner, self._layers, self._options.distributed
        )
        self._warned: set[str] = set()
        self._generator = torch.Generator(self._processes.device)
        self._seed_draws()
        self._observer = Observer(
            self._owner,
            model,
            self._layers,
            own.fisher,
            loss,
            own.mc_samples,
            self._generator,
            partial(self._is_due, "factor_update_steps"),
        )
        # the gradients of a mean over data or rows are divided by their number
        if self._observer.is_empirical:
            self._power = int(own.loss_reduction == "mean")
        else:
            self._power = -int(loss.reduction == "mean")

    def __repr__(self) -> str:
        """List the options, and the layers with the shapes of their factors."""
        lines = [f"{name}={group}" for name, group in vars(self._options).items()]
        common = vars(LayerOptions.of(self._options))
        for layer in self._layers.values():
            own = vars(layer.options).items()
            other = [f"{key}={value}" for key, value in own if value != common[key]]
            lines.append(", ".join([str(layer), *other]))
        return "\n  ".join([f"{self._owner}(", *lines]) + "\n)"

    # -- a step

    @torch.no_grad()
    def step(self) -> None:
        """Precondition the gradients, in place.

        A step is counted as skipped in two cases. If gradients overflow under a
        ``GradScaler``, they stay as they are, so that the scaler finds the overflow. If
        preconditioned gradients are not finite, they are set to ``None``, so that the
        optimizer does not change these parameters.

        Raises:
            RuntimeError: If there was no backward pass in training mode since the last
                step.
            ValueError: If gradients are not finite. Nothing is changed then.
        """
        layers = self._layers_to_precondition()
        if not self._check_gradients(layers):
            self.last_step = StepMetrics(self.steps, True, None, {}, False, ())
            return
        # find invalid numbers before anything is changed
        for layer in layers.values():
            layer.resolve(self.steps)
        clip_and_lr = self._clip_and_lr()
        updates_factors = self._is_due("factor_update_steps")
        if updates_factors:
            self._update_factors(layers)
        is_due = self._is_due("inverse_update_steps")
        due = [
            own
            for own in layers.values()
            if own.has_averages and (is_due or not own.is_inverted)
        ]
        self._processes.update_inverses(due)
        scale = self._write(layers, clip_and_lr)
        self.last_step = StepMetrics(
            self.steps,
            scale is None,
            scale,
            {
                name: layer.damping_used
                for name, layer in layers.items()
                if layer.damping_used is not None
            },
            updates_factors,
            tuple(layer.name for layer in due),
        )
        for layer in layers.values():
            layer.trained.note_step()
        self.steps += 1
        self._seed_draws()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Ignore forward and backward passes in this context, such as of an attack.

        If these add to ``.grad``, the statistics of the next step lack them.
        """
        was_paused, self._observer.is_paused = self._observer.is_paused, True
        try:
            yield
        finally:
            self._observer.is_paused = was_paused

    def remove_hooks(self) -> None:
        """Stop observing the model; :meth:`step` cannot be called any more."""
        self._observer.remove()

    def _is_due(self, name: str) -> bool:
        every = getattr(self._options.schedule, name)
        return self.steps % int(number_at(self._owner, name, every, self.steps)) == 0

    def _layers_to_precondition(self) -> dict[str, Layer]:
        """Find the layers with gradients that no step has preconditioned yet."""
        found = {name: own for name, own in self._layers.items() if own.gradients}
        for name, own in found.items():
            are_sharded = any(isinstance(g, DTensor) for g in own.gradients.values())
            if are_sharded and not own.is_sharded:
                remedy = f"Construct {self._owner} after fully_shard"
                rule, got = "not be sharded later", "sharded parameters"
                raise RuntimeError(describe(self._owner, name, rule, got, remedy))
        reason = "no longer multiplies by its own parameters"
        self._warn_of({n: reason for n, own in found.items() if not own.is_intact})
        found = {name: own for name, own in found.items() if own.is_intact}
        layers = {
            n: own for n, own in found.items() if not own.trained.are_preconditioned
        }
        if not layers:
            self._observer.forget()
            rule, remedy = "follow a backward pass", "Call loss.backward() first"
            got = "none since the last step" if found else "none"
            raise RuntimeError(describe(self._owner, "step", rule, got, remedy))
        return layers

    def _check_gradients(self, layers: Mapping[str, Layer]) -> bool:
        """Tell whether gradients are finite."""
        gradients = {
            f"{name}.{key}": local_part(own)
            for name, layer in layers.items()
            for key, own in layer.gradients.items()
        }
        wrong = not_finite(gradients, self._processes.all_agree)
        if not wrong:
            return True
        self._observer.forget()
        if self._grad_scaler is not None:
            self.skipped += 1
            return False
        found = f"inf or nan in {', '.join(wrong)}"
        raise ValueError(describe(self._owner, "gradients", "be finite", found))

    def _update_factors(self, layers: Mapping[str, Layer]) -> None:
        is_empirical, scale = self._observer.is_empirical, 1.0
        if self._grad_scaler is not None and is_empirical:
            scale = float(self._grad_scaler.get_scale()) ** -2
        found = {
            name: own.take(scale, self._power, per_row=not is_empirical)
            for name, own in layers.items()
        }
        left_out = dict(self._observer.left_out)
        self._observer.forget()
        is_known = any(own.has_averages for own in layers.values())
        if not (any(found.values()) or is_known or left_out):
            rule = "follow a forward and backward pass in training mode"
            called = "" if is_empirical else "the model itself, and "
            remedy = f"Call model.train(), {called}loss.backward()"
            raise RuntimeError(describe(self._owner, "step", rule, "none", remedy))
        found = self._processes.average(found)
        are_finite = self._processes.all_agree(list(map(all_finite, found.values())))
        for name, is_finite in zip(list(found), are_finite, strict=True):
            new = found.pop(name)
            if is_finite:
                self._layers[name].average(new)
            else:
                LOG.warning("Layer %s: factors are not finite, not averaged", name)
        without = [name for name, own in layers.items() if not own.has_averages]
        unseen = "was not called in the passes that computed them"
        self._warn_of({name: left_out.get(name, unseen) for name in without})

    def _warn_of(self, reasons: Mapping[str, str]) -> None:
        """Warn once about each layer that keeps its gradient."""
        names: defaultdict[str, list[str]] = defaultdict(list)
        for name, reason in reasons.items():
            if name not in self._warned:
                names[reason].append(repr(name))
        self._warned.update(reasons)
        for reason, own in names.items():
            warn(
                f"{self._owner}: plain gradients are used for {', '.join(own)}, as "
                f"each {reason}.",
                stacklevel=4,
            )

    def _write(
        self, layers: Mapping[str, Layer], clip_and_lr: tuple[float, float] | None
    ) -> Tensor | None:
        pairs = (
            (local_part(own), new[key])
            for name, new in self._processes.preconditioned(layers)
            for key, own in layers[name].gradients.items()
        )
        scale = replace_gradients(pairs, clip_and_lr, self._processes.total)
        if scale is None:
            self.skipped += 1
            message = "Step %d skipped: preconditioned gradients are not finite"
            LOG.warning(message, self.steps)
            for layer in layers.values():
                for own in layer.trained.resting.values():
                    own.grad = None
        return scale

    def _clip_and_lr(self) -> tuple[float, float] | None:
        own = self._options.clipping
        clip = number_at(self._owner, "kl_clip", own.kl_clip, self.steps)
        if clip is None:
            return None
        return clip, number_at(self._owner, "lr", own.lr, self.steps)

    def _seed_draws(self) -> None:
        """Seed samples by step and process, so that a state need not store a seed."""
        per_step = self._options.curvature.seed + self.steps * self._processes.size
        self._generator.manual_seed(per_step + self._processes.rank)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return averages, inverses and counters, as plain tensors and numbers.

        If inverses are split between processes, all of them must call this method. Any
        number of processes can load the state.

        If parameters are sharded, the state has only the layers that this process owns.
        Save it with ``torch.distributed.checkpoint.save``; any number of processes can
        load it with :meth:`load_checkpoint`.
        """
        return {
            "version": VERSION,
            "steps": self.steps,
            "skipped": self.skipped,
            "layers": self._processes.states(),
        }

    def load_checkpoint(
        self, checkpoint_id: str | PathLike[str], key: str = "preconditioner"
    ) -> None:
        """Load a state that ``torch.distributed.checkpoint.save`` saved.

        For example, save it with ``save({"preconditioner":
        preconditioner.state_dict()}, checkpoint_id=folder)``. The number of processes
        may differ, and parameters may be sharded or not. All processes must call this
        method.

        Args:
            checkpoint_id: Folder of the checkpoint.
            key: Key of the state in the dictionary that was saved.

        Raises:
            ValueError: As for :meth:`load_state_dict`, or if there is no such key.
        """
        names = [name for name in self._layers if self._processes.holds(name)]
        self.load_state_dict(read_state(self._owner, checkpoint_id, key, names))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state, and drop the statistics since the last step.

        If parameters are sharded, all processes must call this method.

        Args:
            state_dict: A state of :meth:`state_dict`. If parameters are sharded, it
                needs only the layers that this process owns.

        Raises:
            ValueError: If it is of other layers or another version. Nothing is changed
                then.
        """
        version = state_dict.get("version")
        if version != VERSION:
            rule = f"be of version {VERSION}"
            raise ValueError(describe(self._owner, "state_dict", rule, version))
        states = state_dict["layers"]
        wrong = self._processes.unlike(states)
        (is_fine,) = self._processes.all_agree([not wrong])
        if not is_fine:
            others = ", ".join(wrong) or "some layers of another process"
            rule, found = "have the same layers", f"different ones at {others}"
            raise ValueError(describe(self._owner, "state_dict", rule, found))
        self._observer.forget()
        self.steps, self.skipped = state_dict["steps"], state_dict["skipped"]
        self._seed_draws()
        self._processes.load(states, self.steps > 0)
