"""The cost of the pool, measured against the plain SDK in the same run."""
