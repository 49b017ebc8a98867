"""The job `evaluate`: metrics, a table and a report."""
