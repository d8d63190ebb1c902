"""dqmstream: detector data-quality monitoring that files, learns and remembers."""

__version__ = "0.1.0"
