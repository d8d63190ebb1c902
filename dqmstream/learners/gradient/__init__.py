"""Gradient strategies: one Avalanche template, one short module a method. Importing any of them imports torch and Avalanche."""
