"""The decisions, pure: no clock, lock, I/O, logging or SDK is imported in this room."""
