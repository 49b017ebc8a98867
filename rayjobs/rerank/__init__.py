"""The job `rerank`: candidates of queries in a better order."""
