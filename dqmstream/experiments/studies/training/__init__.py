"""Offline training: a classifier of images that all lie in files, as the earlier studies trained theirs."""
