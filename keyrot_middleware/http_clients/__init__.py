"""httpx, httpx2 and requests, through the pool: for openai, litellm and plain HTTP."""
