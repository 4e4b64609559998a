"""Requests to stop: where they are answered, where they wait, and what a second one does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from fieldmark.errors import Interrupted, ResourceError, RunError
from fieldmark.machine.signals import Stop, held, released, stop_requests

ASKING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def usual_handlers() -> object:
    """However the tests were started: a job in the background ignores some of the signals."""
    before = {number: signal.getsignal(number) for number in ASKING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ASKING)
def test_a_request_is_answered_at_once_and_the_handlers_are_put_back(number: int) -> None:
    before = [signal.getsignal(each) for each in ASKING]
    with pytest.raises(Interrupted, match="same command") as caught, stop_requests():
        ask(number)
        pytest.fail("it went on")
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in ASKING] == before


def test_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), stop_requests():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_must_be_whole_is_ended_first() -> None:
    done = []
    with pytest.raises(Interrupted), stop_requests():
        with held():
            ask()
            done.append("held")
        done.append("beyond")
    assert done == ["held"]


def test_what_was_held_is_answered_in_between() -> None:
    done = []
    with pytest.raises(Interrupted) as caught, stop_requests(), held():
        ask(signal.SIGHUP)
        done.append("held")
        with released():
            done.append("released")
    assert done == ["held"]
    assert caught.value.exit_code == 129


def test_released_work_is_left_at_once_and_the_rest_is_held_again() -> None:
    done = []
    with pytest.raises(Interrupted), stop_requests(), held():
        try:
            with released():
                ask()
                done.append("went on")
        except Stop:
            done.append("saving, held")
            raise
    assert done == ["saving, held"]


def test_an_answer_that_was_swallowed_is_given_again() -> None:
    """As it is by a destructor, which reports an error and goes on."""
    done = []
    with pytest.raises(Interrupted), stop_requests():
        with contextlib.suppress(BaseException):
            ask()
        done.append("went on")
        with held():
            done.append("once more")
        done.append("beyond")
    assert done == ["went on", "once more"]


def mistaken() -> None:
    """As a library in C does it that converts what Python gives it."""
    try:
        ask()
    except KeyboardInterrupt:
        raise ValueError("Invalid bounding box") from None


def test_an_answer_that_a_library_made_an_error_of_is_the_answer() -> None:
    with pytest.raises(Interrupted, match="same command") as caught, stop_requests():
        try:
            mistaken()
        except ValueError as error:
            raise RunError("a file with unexpected contents") from error
    assert caught.value.exit_code == 143
    with pytest.raises(Interrupted), stop_requests():
        with pytest.raises(Stop), held(), released():
            mistaken()
        raise Interrupted("my words", signal_number=signal.SIGTERM)


def test_an_error_without_a_request_or_in_saving_stays_one() -> None:
    with pytest.raises(ValueError, match="a real one"), stop_requests(), released():
        raise ValueError("a real one")
    with pytest.raises(ResourceError, match="full"), stop_requests():
        try:
            ask()
        except Stop:
            raise ResourceError("the disk is full") from None


def test_own_words() -> None:
    with pytest.raises(Interrupted, match="my words") as caught, stop_requests():
        try:
            ask()
        except Stop as stop:
            raise Interrupted("my words", signal_number=stop.number) from None
    assert caught.value.exit_code == 143


def test_blocks_within_blocks_and_one_after_the_other() -> None:
    with pytest.raises(Interrupted), stop_requests(), stop_requests():
        ask()
    with stop_requests(), held(), released():
        pass
    with pytest.raises(Interrupted), stop_requests():
        ask()


def test_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_requests():
        ask(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_without_handlers_nothing_is_held() -> None:
    with pytest.raises(KeyboardInterrupt), held():
        ask(signal.SIGINT)


def test_outside_of_the_main_thread_nothing_is_installed_or_answered() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop_requests(), held(), released():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


PROGRAM = """
    import signal, sys, time
    from fieldmark.machine.signals import held, stop_requests
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_requests(), held():
        print("ready", flush=True)
        until = time.monotonic() + float(sys.argv[1])
        while time.monotonic() < until:
            time.sleep(0.01)
            if signal.sigpending():
                break
"""


def started(seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_request_ends_the_process_where_it_is(number: int) -> None:
    process = started(600)
    while process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(0.3)
        except subprocess.TimeoutExpired:
            continue
    process.communicate()
    assert process.returncode == -number


def test_the_echo_of_a_request_is_the_same_request() -> None:
    process = started(1)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 1  # an Interrupted that nobody catches: the block came to its end


TERMINAL = """
    import pathlib, sys, time
    from fieldmark.errors import Interrupted
    from fieldmark.machine.signals import Stop, stop_requests
    try:
        with stop_requests():
            print("ready", flush=True)
            time.sleep(600)
    except Interrupted as stopped:
        print("output after the end of the terminal", flush=True)
        pathlib.Path(sys.argv[1]).write_text("saved")
        sys.exit(stopped.exit_code)
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such terminals")
def test_a_terminal_that_is_closed_is_no_error(tmp_path: Path) -> None:
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        words = ["-c", textwrap.dedent(TERMINAL), str(tmp_path / "state")]
        os.execv(sys.executable, [sys.executable, *words])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert (tmp_path / "state").read_text() == "saved"
