"""Two runs compared: which channels and readout boxes changed under the same conditions. `compare.compare_runs` does it."""
