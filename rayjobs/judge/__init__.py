"""The job `judge`: mined candidates to judged hard negatives with soft scores."""
