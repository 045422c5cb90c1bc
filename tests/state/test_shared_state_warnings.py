"""What a program without logging must know of its shared state: it is lost."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

from support.servers import free_port

from keyrot_middleware.errors import KeyrotWarning, warn_unless_logged

PROGRAM = """
import logging, sys, time
from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.state import open_state
if sys.argv[2] == "logging":
    logging.basicConfig(format="logged: %(message)s")
open_state(sys.argv[1], RetryPolicy(), time.time).close()
"""


def stderr_of(url: str, *options: str, logs: str = "none") -> str:
    """Open a state in a program of its own; return what it writes to stderr."""
    command = [sys.executable, *options, "-c", PROGRAM, url, logs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stderr


def test_a_lost_state_is_a_warning_without_logging() -> None:
    """A program that has not set up logging sees that limits are no longer shared."""
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    text = stderr_of(url)
    assert "KeyrotWarning: pool default: the shared state cannot be used" in text
    assert text.count("cannot be used") == 1
    assert "hunter2" not in text


def test_a_lost_state_is_a_log_record_with_logging() -> None:
    """It is not shown twice."""
    text = stderr_of(f"redis://127.0.0.1:{free_port()}/0", logs="logging")
    assert text.startswith("logged: pool default: the shared state cannot be used")
    assert text.count("cannot be used") == 1


def test_a_program_whose_warnings_are_errors_continues() -> None:
    """No call fails because of a warning."""
    stderr_of(f"redis://127.0.0.1:{free_port()}/0", "-W", "error")


def test_a_handler_of_the_library_or_above_it_is_enough() -> None:
    """Only a program without any handler gets a Python warning."""
    log = logging.Logger("alone")
    handlers: list[logging.Handler] = [logging.NullHandler()]
    for handler in (*handlers, logging.StreamHandler()):
        log.addHandler(handler)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            warn_unless_logged(log, "text")
        expected = [KeyrotWarning] if handler in handlers else []
        assert [one.category for one in found] == expected
