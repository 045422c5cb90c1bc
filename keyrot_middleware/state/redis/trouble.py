"""What a state in Redis raises when it cannot know or cannot book."""

from __future__ import annotations

from ...errors import KeyrotError

__all__ = ["RedisTrouble"]


class RedisTrouble(KeyrotError):  # noqa: N818 - not a bug of anybody's
    """Say that the server was not reached in time, or refused; what it said is the cause.

    Whether a script ran is unknown when its answer is what did not come.
    """

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__(f"{where}: {str(error) or type(error).__name__}")
