"""What is kept of past runs, within a budget of bytes.

exemplars      lumisections; selection: which ones
class_means    one mean a run; merging: which two become one where the budget is full
gain_codec     gains in one byte each
map_codec      lumisections as named arrays, for saved states
"""
