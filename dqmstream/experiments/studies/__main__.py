"""Print docs/studies.md."""

from dqmstream.experiments.studies.recipes import page

print(page(), end="")
