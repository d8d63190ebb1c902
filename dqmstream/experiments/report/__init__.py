"""The report of an archive and its learners as a page: `report.write_report` writes it, `panels` holds its parts."""
