"""The fault benchmark: detectors of faults over a stream whose faults are known, tested on each run before they learn it."""
