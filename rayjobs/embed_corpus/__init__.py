"""The job `embed-corpus`: vectors of any corpus in Parquet."""
