"""Readers of files of lumisections, a module for each file layout."""
