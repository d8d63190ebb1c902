"""What each channel should count under a lumisection's own conditions, and how it counts otherwise.

law            probability that a channel fires in an event, as a function of pileup
base           a response: expected counts as a function of the conditions a and b
quadratic      the response without a physical law
saturating     the response by the law
fit            the choice between them in the first run; scatter: rates without a moving pileup
later_runs     what later runs add
reference      all of this for the live channels of a detector
observation    lumisections compared with the reference
conditions     events and pileup of a lumisection, given the gains of its run
gains          changes of channels' rates in a run, and their course over runs
outages        channels and boxes that count next to nothing, and counts with these filled in
pileup_error   what the law misses as a function of pileup
rings, boxes   medians over rings, sums over readout boxes
"""
