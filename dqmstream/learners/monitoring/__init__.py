"""Scores for the shift: is this run new, and has something failed?

novelty        the new-run score; evidence, drift, stretches: its parts
fault_score    the fault score; fault_filter: how evidence adds up over lumisections
alarms         p-values of both, so that alarms keep their rate; known_scores, held_out: its parts
scatter        counts that scatter more than the law says, allowed for; law_watch: named for the shift
autoencoder    a comparison for the fault score
"""
