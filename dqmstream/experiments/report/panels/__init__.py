"""The panels of the report, in reading order. A new one is a module here, a template, and a line of PANELS."""

from __future__ import annotations

from dqmstream.experiments.report.panel import MakePanel
from dqmstream.experiments.report.panels.archive import archive_panel
from dqmstream.experiments.report.panels.changes import changes_panel
from dqmstream.experiments.report.panels.contents import contents_panel
from dqmstream.experiments.report.panels.further_figures import further_figures_panel
from dqmstream.experiments.report.panels.glossary import glossary_panel
from dqmstream.experiments.report.panels.headline import headline_panel
from dqmstream.experiments.report.panels.labels import labels_panel
from dqmstream.experiments.report.panels.learners import learners_panel
from dqmstream.experiments.report.panels.stream import stream_panel
from dqmstream.experiments.report.panels.summary import summary_panel

PANELS: tuple[MakePanel, ...] = (
    headline_panel,
    summary_panel,
    further_figures_panel,
    contents_panel,
    archive_panel,
    stream_panel,
    learners_panel,
    labels_panel,
    changes_panel,
    glossary_panel,
)
