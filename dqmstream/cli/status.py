"""`dqmstream status`: what an archive holds, and what its learners last did."""

from __future__ import annotations

from dqmstream.cli import output
from dqmstream.cli.options import Json, show, with_settings
from dqmstream.settings import Settings


@with_settings("archive", "state")
def status(settings: Settings, as_json: Json = False) -> None:
    """What is in the archive, and what the learners last did."""
    from dqmstream.learners.stream.status import learner_status
    from dqmstream.storage.archive import Archive
    from dqmstream.storage.status import archive_status

    reader = Archive.open(settings.need("archive"))
    result = {**archive_status(reader), "learners": learner_status(reader, settings.state_path, settings.learner_hang_s)}
    show(result, as_json, *output.describe_status(result))
