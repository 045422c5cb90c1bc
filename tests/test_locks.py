"""The lock of the package: no interrupt leaves it locked, and nobody waits for it for ever."""

import os
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
