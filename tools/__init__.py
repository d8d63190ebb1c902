"""Tools for developing dqmstream, not part of the package: `python -m tools.broker`."""
