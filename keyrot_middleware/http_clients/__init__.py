"""httpx, httpx2, requests and aiohttp, through the pool: for openai, litellm and plain HTTP."""

from .binding import HttpClients, transport

__all__ = ["HttpClients", "transport"]
