"""What of kafka-python 3.0 does not do what is needed here, one file for each defect.

Each file says what it mends, of which version, and where it was reported. `private_names` lists every private name of the
client that these files use, since a new version may change them without notice. No other file uses any.
"""
