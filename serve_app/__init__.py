"""The chat application: everything Aurora does with a message, without knowing that Ray exists."""

__version__ = "0.1.0"
