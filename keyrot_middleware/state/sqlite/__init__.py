"""The state of a pool in a file that the processes of one host share."""

from .file import SqliteStateError, path_of_url
from .state import SqliteState

__all__ = ["SqliteState", "SqliteStateError", "path_of_url"]
