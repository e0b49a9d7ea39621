"""The HTML report: results as one page that opens from disk. docs/report.md explains what is on it."""
