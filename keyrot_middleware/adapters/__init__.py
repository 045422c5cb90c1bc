"""What adapters share. An adapter puts calls of a library through the pool."""
