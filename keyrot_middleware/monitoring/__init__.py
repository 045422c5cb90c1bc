"""How a pool is, for people: rows and words, what pages and commands read, and alerts."""
