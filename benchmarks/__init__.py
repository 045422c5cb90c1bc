"""What the pool costs, measured against the plain SDK in the same run."""
