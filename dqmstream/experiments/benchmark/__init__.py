"""The benchmark: strategies and models on simulated streams, beside two bounds."""
