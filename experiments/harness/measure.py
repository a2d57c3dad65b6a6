"""Timing side by side, and peak memory in a fresh process."""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Call = Callable[[], Any]
"""Computes something: tensors in lists, tuples and dictionaries.

If it has a method ``before``, that runs before each call, neither timed nor weighed.
"""

Build = Callable[..., Call]
"""Takes ``small``, whether to take a smaller input; makes inputs, returns a call.

Only the call is measured. It must be picklable if memory is measured: a ``partial`` of
a module's function.
"""

MIN_ROUNDS = 5
MEMORY_TIMEOUT_SECONDS = 300.0
RESOLUTION_BYTES = 2**19
"""Smallest difference between the peaks of two processes that means something."""

# the server forks from an image that has imported torch but never ran a parallel
# region, so every child is fresh and starts in milliseconds
_SERVER = multiprocessing.get_context("forkserver")


class MemoryNotMeasured(RuntimeError):
    """The peak memory could not be measured; the message says why."""


@dataclass(frozen=True)
class Prepared:
    """A call, and what runs before it."""

    before: Call
    call: Call

    def __call__(self) -> Any:
        """Call."""
        return self.call()


def before(call: Call) -> None:
    """Run what a call wants to have run before it, if anything."""
    getattr(call, "before", lambda: None)()


def time_side_by_side(
    calls: Mapping[str, Call],
    rounds: int,
    device: torch.device | str = "cpu",
    min_seconds: float = 2e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time calls in alternating rounds.

    Each round calls everybody, and each round another one comes first. Calls shorter
    than ``min_seconds`` are repeated within a round. The garbage collector rests
    meanwhile.

    Args:
        calls: What to call, by name.
        rounds: Number of rounds after the warm-up.
        device: Where the calls compute; CUDA devices are synchronised.
        min_seconds: Shortest time to measure.
        clock: Tells the time in seconds.

    Returns:
        Seconds per call of each round, by name.
    """
    on_cuda = torch.device(device).type == "cuda"

    def elapsed(call: Call, repeats: int) -> float:
        if on_cuda:
            torch.cuda.synchronize(device)
        start = clock()
        for _ in range(repeats):
            call()
        if on_cuda:
            torch.cuda.synchronize(device)
        return clock() - start

    def seconds(name: str, repeats: int) -> float:
        call = calls[name]
        if not hasattr(call, "before"):
            return elapsed(call, repeats) / repeats
        total = 0.0
        for _ in range(repeats):
            before(call)
            total += elapsed(call, 1)
        return total / repeats

    repeats: dict[str, int] = {}
    for name in calls:
        estimate = seconds(name, 1)
        if estimate < 100 * min_seconds:
            # the first call paid for plans, caches and threads
            estimate = seconds(name, 1)
        repeats[name] = max(1, math.ceil(min_seconds / max(estimate, 1e-7)))

    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            first = i % max(len(names), 1)
            for name in names[first:] + names[:first]:
                times[name].append(seconds(name, repeats[name]))
    finally:
        if was_enabled:
            gc.enable()
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Take the median of each one's rounds."""
    return {name: median(rounds) for name, rounds in times.items()}


def preload(*modules: str) -> None:
    """Name the modules that memory measurements need; call it before the first one.

    The processes that measure are forked from a server that imported these modules,
    so they must not run parallel torch computations on import.
    """
    _SERVER.set_forkserver_preload(["torch", *modules])


def peak_memory(
    build: Build, device: torch.device | str = "cpu", threads: int | None = None
) -> int:
    """Measure the peak memory of a call beyond its inputs and its result, in bytes.

    On CPU, the high-water mark of the resident set of a fresh process, less the
    resident set right before the call and less the result, of the leaner of two calls:
    what is loaded once is not counted. It resolves about a quarter MiB. On CUDA, the
    same from torch's allocator, in this process.

    Args:
        build: Builds the call, and a small one as a warm-up. Must be picklable.
        device: Where the call computes.
        threads: Number of threads on CPU. Default: torch's.

    Returns:
        Bytes.

    Raises:
        MemoryNotMeasured: If the process failed or the platform has no such counter.
    """
    if torch.device(device).type == "cuda":
        return _peak_on_cuda(_warmed_up(build), device)

    threads = torch.get_num_threads() if threads is None else threads
    receiver, sender = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(
        target=_measure_in_child, args=(build, threads, sender), daemon=True
    )
    process.start()
    sender.close()
    try:
        answer = _receive(receiver)
    finally:
        receiver.close()
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise MemoryNotMeasured(answer)
    return answer


def _receive(receiver: Connection) -> int | str:
    """Wait for a child's answer: bytes, or why there are none."""
    if not receiver.poll(MEMORY_TIMEOUT_SECONDS):
        return f"no answer within {MEMORY_TIMEOUT_SECONDS:.0f} s"
    try:
        answer: int | str = receiver.recv()
        return answer
    except EOFError:
        return "the process was killed, probably for want of memory"


def _warmed_up(build: Build) -> Call:
    first, call = build(small=True), build(small=False)
    before(first)
    first()
    return call


def _measure_in_child(build: Build, threads: int, sender: Connection) -> None:
    try:
        _release_freed_memory_at_once()
        torch.set_num_threads(threads)
        _start_threads()
        call = _warmed_up(build)
        # the first call may load what all later ones use
        sender.send(min(_peak_resident(call) for _ in range(2)))
    except Exception as error:  # whatever it is, the parent has to report it
        sender.send(f"{type(error).__name__}: {error}")


def _release_freed_memory_at_once() -> None:
    """Make the resident set follow allocations closely."""
    trim_threshold, mmap_threshold, disable_huge_pages = -1, -3, 41
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 65536)
    libc.mallopt(trim_threshold, 65536)
    # huge pages would round every allocation up to 2 MiB
    libc.prctl(disable_huge_pages, 1, 0, 0, 0)


def _start_threads() -> None:
    """Let the thread pool and the kernels load, which no call should pay for."""
    x = torch.ones(512, 512)
    (x @ x).sum()
    weight = torch.ones(8, 1, 3, 3, requires_grad=True)
    torch.nn.functional.conv2d(x[None, None], weight).sum().backward()


def _peak_resident(call: Call) -> int:
    before(call)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    held = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    result = call()
    peak = _resident_bytes("VmHWM")
    return max(0, peak - held - num_bytes(result))


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _peak_on_cuda(call: Call, device: torch.device | str) -> int:
    before(call)
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return max(0, peak - held - num_bytes(result))


def num_bytes(result: object) -> int:
    """Count the bytes of a result's tensors; what several of them share counts once.

    What a small view keeps alive of a large tensor is overhead, not result.
    """
    held: Counter[int] = Counter()
    sizes: dict[int, int] = {}
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            storage = leaf.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            held[storage.data_ptr()] += leaf.numel() * leaf.element_size()
    return sum(min(size, sizes[key]) for key, size in held.items())
