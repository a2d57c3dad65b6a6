"""Timing side by side, and peak memory in a fresh process."""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Call = Callable[[], object]
Prepare = Callable[[], tuple[Call, Call]]
"""Builds the inputs; returns a small warm-up and the call to be measured."""

MIN_ROUNDS = 5
MEMORY_TIMEOUT_SECONDS = 300.0
RESOLUTION_BYTES = 2**19
"""Smallest difference between the peaks of two processes that means something."""

# the server forks from an image that has imported torch but never ran a parallel
# region, so every child is fresh and starts in milliseconds
_SERVER = multiprocessing.get_context("forkserver")


def number_of_rounds(text: str) -> int:
    """Parse an option's number of rounds, as ``argparse`` asks for it."""
    number = int(text)
    if number < MIN_ROUNDS:
        raise argparse.ArgumentTypeError(f"must be at least {MIN_ROUNDS}, got {number}")
    return number


class MemoryNotMeasured(RuntimeError):
    """The peak memory could not be measured; the message says why."""


def time_side_by_side(
    contenders: Mapping[str, Call],
    rounds: int,
    device: torch.device | str = "cpu",
    min_seconds: float = 2e-3,
    setup: Mapping[str, Call] | None = None,
    min_rounds: int = MIN_ROUNDS,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Time callables in alternating rounds.

    Each round calls every contender, and each round another one comes first. Calls
    shorter than ``min_seconds`` are repeated within a round. The garbage collector
    rests meanwhile.

    Args:
        contenders: What to call, by name.
        rounds: Number of rounds after the warm-up.
        device: Where the contenders compute; CUDA devices are synchronised.
        min_seconds: Shortest time to measure.
        setup: What to call before each call of a contender, untimed, by its name.
        min_rounds: Least number of rounds; fewer than five only for calls of minutes.
        clock: Tells the time in seconds. Default: ``time.perf_counter``.

    Returns:
        Seconds per call of each round, by name.

    Raises:
        ValueError: If there are too few rounds.
    """
    if rounds < min_rounds:
        raise ValueError(
            f"time_side_by_side: rounds must be at least {min_rounds}, got {rounds}."
        )
    on_cuda = torch.device(device).type == "cuda"
    setup = {} if setup is None else setup
    now = time.perf_counter if clock is None else clock

    def elapsed(call: Call, repeats: int) -> float:
        if on_cuda:
            torch.cuda.synchronize(device)
        start = now()
        for _ in range(repeats):
            call()
        if on_cuda:
            torch.cuda.synchronize(device)
        return now() - start

    def seconds(name: str, repeats: int) -> float:
        call, prepare = contenders[name], setup.get(name)
        if prepare is None:
            return elapsed(call, repeats) / repeats
        total = 0.0
        for _ in range(repeats):
            prepare()
            total += elapsed(call, 1)
        return total / repeats

    repeats: dict[str, int] = {}
    for name in contenders:
        estimate = seconds(name, 1)
        if estimate < 100 * min_seconds:
            # the first call paid for plans, caches and threads
            estimate = seconds(name, 1)
        repeats[name] = max(1, math.ceil(min_seconds / max(estimate, 1e-7)))

    names = list(contenders)
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
    """Median of each contender's rounds."""
    return {name: median(rounds) for name, rounds in times.items()}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """Ratios of two contenders' rounds."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def memory_share(ours: int, stock: int) -> float:
    """Ours over stock's peak; one where processes differ by that much anyway."""
    if abs(ours - stock) <= RESOLUTION_BYTES:
        return 1.0
    return ours / max(stock, RESOLUTION_BYTES)


def preload(*modules: str) -> None:
    """Name the modules that memory measurements need; call it before the first one.

    The processes that measure are forked from a server that imported these modules,
    so they must not run torch computations on import.
    """
    _SERVER.set_forkserver_preload(["torch", *modules])


def peak_memory(
    prepare: Prepare,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    timeout: float | None = None,
) -> int:
    """Peak memory of a call beyond its inputs and its result, in bytes.

    On CPU, the high-water mark of the resident set of a fresh process, less the
    resident set right before the call and less the result, of the leaner of two calls:
    what is loaded once is not counted. It resolves about a quarter MiB. On CUDA, the
    same from torch's allocator, in this process.

    Args:
        prepare: Builds the inputs, returns a small warm-up and the call. Must be
            picklable.
        device: Where the call computes.
        threads: Number of threads on CPU. Default: torch's.
        timeout: Seconds to wait for the process. Default: five minutes.

    Returns:
        Bytes.

    Raises:
        MemoryNotMeasured: If the process failed or the platform has no such counter.
    """
    if torch.device(device).type == "cuda":
        warm_up, run = prepare()
        warm_up()
        return _peak_on_cuda(run, device)

    threads = torch.get_num_threads() if threads is None else threads
    receiver, sender = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(
        target=_measure_in_child, args=(prepare, threads, sender), daemon=True
    )
    process.start()
    sender.close()
    try:
        answer = _receive(receiver, timeout or MEMORY_TIMEOUT_SECONDS)
    finally:
        receiver.close()
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise MemoryNotMeasured(answer)
    return answer


def _receive(receiver: Connection, timeout: float) -> int | str:
    """Wait for a child's answer: bytes, or why there are none."""
    if not receiver.poll(timeout):
        return f"no answer within {timeout:.0f} s"
    try:
        answer: int | str = receiver.recv()
        return answer
    except EOFError:
        return "the process was killed, probably for want of memory"


def _measure_in_child(prepare: Prepare, threads: int, sender: Connection) -> None:
    try:
        _release_freed_memory_at_once()
        torch.set_num_threads(threads)
        _start_threads()
        warm_up, run = prepare()
        warm_up()
        # the first call may load what all later ones use
        sender.send(min(_peak_resident(run) for _ in range(2)))
    except Exception as error:  # whatever it is, the parent has to report it
        sender.send(f"{type(error).__name__}: {error}")


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of the C library's ``mallopt``."""


def keep_freed_memory() -> None:
    """Let memory that is freed be used again, rather than returned to the system.

    The first touch of fresh memory is a page fault every 4 KiB, a microsecond and more
    on virtual machines. Which of two contenders meets them is chance.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 2**25)  # the largest that it takes
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _release_freed_memory_at_once() -> None:
    """Make the resident set follow allocations closely."""
    libc = ctypes.CDLL(None)
    disable_huge_pages = 41
    libc.mallopt(_MMAP_THRESHOLD, 65536)
    libc.mallopt(_TRIM_THRESHOLD, 65536)
    # huge pages would round every allocation up to 2 MiB
    libc.prctl(disable_huge_pages, 1, 0, 0, 0)


def _start_threads() -> None:
    """Let the thread pool and the kernels load, which no call should pay for."""
    x = torch.ones(512, 512)
    (x @ x).sum()
    weight = torch.ones(8, 1, 3, 3, requires_grad=True)
    torch.nn.functional.conv2d(x[None, None], weight).sum().backward()


def before(call: Call) -> None:
    """Run what a call wants to have run before it, if anything."""
    getattr(call, "before", lambda: None)()


def _peak_resident(run: Call) -> int:
    before(run)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    held = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    result = run()
    peak = _resident_bytes("VmHWM")
    return max(0, peak - held - num_bytes(result))


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _peak_on_cuda(run: Call, device: torch.device | str) -> int:
    before(run)
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    result = run()
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
