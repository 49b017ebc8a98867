"""The job `mine`: for each query its nearest candidates between two sets of vectors."""
