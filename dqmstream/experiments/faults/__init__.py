"""The fault benchmark: detectors of faults on a simulated stream whose faults are known, each run scored before it is
learnt."""
