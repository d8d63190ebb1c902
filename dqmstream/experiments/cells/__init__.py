"""Cells: the units of work of an experiment, each computed once, kept in a file and reused."""
