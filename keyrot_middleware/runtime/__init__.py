"""The drivers: run the commands of a flow in threads or in asyncio tasks, and decide nothing."""
