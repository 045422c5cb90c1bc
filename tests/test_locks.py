"""The lock of the package: no interrupt leaves it locked, and nobody waits for it for ever."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
from support.states import CtrlC

from keyrot_middleware.locks import Lock, LockError


@contextmanager
def held(lock: Lock) -> Iterator[None]:
    """Hold a lock in another thread."""
    with ThreadPoolExecutor(1) as other:
        other.submit(lock.__enter__).result()
        try:
            yield
        finally:
            other.submit(lock.__exit__, None, None, None).result()


def is_free(lock: Lock) -> bool:
    """Return whether another thread can take a lock at once."""

    def take() -> bool:
        with suppress(LockError), lock:
            return True
        return False

    with ThreadPoolExecutor(1) as other:
        return other.submit(take).result()


def test_an_interrupt_at_any_moment_leaves_it_free() -> None:
    """Before it is taken, as it is taken, in its body and as it is given back; then it works."""
    lock, number, was_raised = Lock(0.0), 0, True
    while was_raised:
        number += 1
        ctrl_c = CtrlC(number, anywhere=True)
        with suppress(KeyboardInterrupt), ctrl_c, lock:
            len(())
        was_raised = ctrl_c.left == 0
        assert is_free(lock), number
    assert number > 4


def test_its_thread_may_take_it_again_and_others_wait_for_a_bounded_time() -> None:
    lock = Lock(0.01)
    with lock, lock:
        assert not is_free(lock)
    assert is_free(lock)
    with held(lock), pytest.raises(LockError, match=r"a lock was not free for 0\.01 s"), lock:
        raise AssertionError("two threads have it")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are of POSIX")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded")
def test_a_forked_child_begins_with_it_free() -> None:
    """The thread of the parent that holds it is not in the child, and keeps it in the parent."""
    lock = Lock(0.0)
    with held(lock):
        child = os.fork()
        if child == 0:
            try:
                with lock:
                    os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not is_free(lock)


_STANDS_STILL = """
import sys, threading
from keyrot_middleware.locks import Lock

lock, waits = Lock(3.0), threading.Event()

def wait():
    waits.set()
    with lock:
        print("got it")

other = threading.Thread(target=wait)
with lock:
    other.start()
    waits.wait()
    print("waits", flush=True)
    sys.stdin.readline()
other.join()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="signals are of POSIX")
def test_a_process_that_stood_still_waits_on() -> None:
    """Its time is up when it wakes; the thread that has the lock is then about to give it back."""
    program = subprocess.Popen(
        [sys.executable, "-c", _STANDS_STILL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "waits\n"
        program.send_signal(signal.SIGSTOP)
        time.sleep(3.2)
        program.send_signal(signal.SIGCONT)
        time.sleep(0.2)  # it wakes
        output, errors = program.communicate("\n", timeout=60)
    assert output == "got it\n", errors
