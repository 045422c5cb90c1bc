"""Sinks: what a call did, as spans and as log lines."""
