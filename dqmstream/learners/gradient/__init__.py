"""Strategies that train a network: one Avalanche template, one short module a method. They import PyTorch and Avalanche."""
