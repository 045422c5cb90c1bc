"""The version, read by the build and by `keyrot_middleware.__version__`."""

__version__ = "0.1.0"
