"""Strategies without gradient steps: a run is learnt in one pass, or by one convex fit.

ring_means     luminosity alone, the lower bound
naive_bayes    mean and variance of each channel's residual
gain_map       gain of each channel
statistical    gains and common modes of readout boxes; density, prefilter, marginal: its log-density
outages        how often channels and readout boxes were out
modes          gains, variances, and what moves together; variance_components, mode_rows: its parts
pool, stacked  several of these weighted by held-out lumisections; pool_weights: the weights
slda, ridge    linear classifiers from sums
logistic       a linear classifier fitted to exemplars
row_per_run    the base of the first three
"""
