"""Flows that could be left half-way, held until their driver has ended them."""

from __future__ import annotations

from typing import Final

from ..core.commands import Steps

__all__ = ["held"]

held: Final[set[Steps]] = set()
"""Open streams and calls that a task waits in.

Python finalises what is in a garbage cycle in any order. Were a flow among it, it could be closed
before its driver, and could not yield the Settle of its lease any more. What is in here is no
garbage, so the driver comes first, and throws.
"""
