"""Offline training of image classifiers on files, as in the earlier studies."""
