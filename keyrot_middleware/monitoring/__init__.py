"""Watching a pool: the state of its keys, reports and alerts. It decides nothing."""
