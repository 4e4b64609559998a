"""One network, several threads, from the first picture on; and processes that are forked."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fieldmark import models
from fieldmark.errors import ResourceError
from fieldmark.jobs import explain
from fieldmark.machine.device import require_no_fork
from fieldmark.machine.process import Lock, outlive_forks
from fieldmark.scoring import engine
from fieldmark.scoring.scorer import Scorer

THREADS = 8


def network() -> models.Network:
    torch.manual_seed(0)
    return models.create("cifar_resnet(depth=8)", num_classes=3, weights="none", size=32)


def at_once(call: Callable[[int], np.ndarray], count: int) -> list[np.ndarray | Exception | None]:
    """What each of so many calls gave, made by several threads that begin together."""
    gate = threading.Barrier(THREADS)
    found: list[np.ndarray | Exception | None] = [None] * count

    def work(first: int) -> None:
        gate.wait()
        for number in range(first, count, THREADS):
            try:
                found[number] = call(number)
            except Exception as error:
                found[number] = error

    threads = [threading.Thread(target=work, args=(k,)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def score(scorer: Scorer, images: torch.Tensor, number: int) -> np.ndarray:
    return scorer(images[number]).numpy()


def test_first_scores_from_several_threads_are_those_of_one() -> None:
    built = network()
    images = torch.randint(0, 256, (THREADS, 1, 3, 32, 32), dtype=torch.uint8)
    alone = Scorer(built.module, spec=built.input)
    wanted = [alone(picture).numpy() for picture in images]
    for _ in range(3):
        scorer = Scorer(built.module, spec=built.input)
        found = at_once(functools.partial(score, scorer, images), THREADS)
        for one, other in zip(found, wanted, strict=True):
            assert isinstance(one, np.ndarray), one
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_heat_maps_and_scores_from_several_threads_are_those_of_one() -> None:
    built = network()
    images = torch.randint(0, 256, (2 * THREADS, 1, 3, 32, 32), dtype=torch.uint8)
    scorer = Scorer(built.module, spec=built.input)

    def ask(number: int) -> np.ndarray:
        if number % 4 == 0:
            return scorer(images[number]).numpy()
        return explain.heat_maps(built.module, images[number], [number % 3], spec=built.input)

    wanted = [ask(number) for number in range(len(images))]
    for one, other in zip(at_once(ask, len(images)), wanted, strict=True):
        assert isinstance(one, np.ndarray), one
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_network_itself_gets_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    built, hooked = network(), []
    real = torch.nn.Module.register_forward_hook

    def register(self: torch.nn.Module, *args: object, **named: object) -> object:
        hooked.append(self)
        return real(self, *args, **named)

    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", register)
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    Scorer(built.module, spec=built.input)(images)
    explain.heat_maps(built.module, images, [0], spec=built.input)
    assert hooked
    assert not set(hooked) & set(built.module.modules())


def test_a_watched_copy_has_the_networks_weights() -> None:
    module = network().module
    copied = engine.watched(module)
    assert {id(p) for p in copied.parameters()} == {id(p) for p in module.parameters()}
    assert {id(b) for b in copied.buffers()} == {id(b) for b in module.buffers()}


def forked(call: Callable[[], int]) -> int:
    """What a fork of this process ends with."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = call()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_computes_with_the_one_thread_that_it_has() -> None:
    outlive_forks()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert forked(torch.get_num_threads) == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_lock_that_another_thread_holds_is_free_in_a_fork() -> None:
    lock, held, done = Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)

    def take() -> int:
        with lock, lock:
            return 7

    try:
        assert forked(take) == 7
    finally:
        done.set()
        thread.join()


def test_a_gpu_in_a_fork_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    require_no_fork("cpu")
    with pytest.raises(ResourceError, match="spawn"):
        require_no_fork("cuda:0")
    assert sys.modules["torch"] is torch
