"""Run a question's cases, whatever becomes of each of them."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm import tqdm

from experiments.harness import machine
from experiments.harness.case import Case, Options, in_a_line
from experiments.harness.measure import preload
from experiments.harness.question import Question
from experiments.harness.store import Store


def run(
    question: Question,
    options: Options,
    store: Store,
    wanted: Callable[[Case], bool] = lambda case: True,
    resume: bool = False,
    seconds: float | None = None,
) -> None:
    """Measure the wanted cases of a question, and store each one's rows at once.

    With ``resume``, cases that are in the store are passed over. After so many seconds,
    no new case begins.
    """
    if not machine.is_available(options.device):
        reason = machine.device_name(options.device)
        store.add({"device": options.device.type}, [{"reason": reason}])
        return
    # the processes that weigh are forked from one that has imported these
    preload(question.cases.__module__, "torchvision")
    cases = [case for case in question.cases(options) if wanted(case)]
    if resume:
        cases = [case for case in cases if not store.has(case.key)]
    end = None if seconds is None else time.monotonic() + seconds
    with tqdm(cases, unit="case", disable=None) as progress:
        for case in progress:
            if end is not None and time.monotonic() > end:
                progress.write(f"out of time, {case.title} and later cases are left")
                break
            progress.set_postfix_str(case.title)
            rows = []
            try:
                for row in case.measure(options):
                    rows.append(row)
            except Exception as reason:  # one case's failure loses no other
                rows.append({"reason": in_a_line(reason)})
            store.add(case.key, rows)
