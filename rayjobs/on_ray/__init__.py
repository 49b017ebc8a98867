"""Where Ray is used, and nowhere else: connection, resources, tasks, streams, the rate limiter's actor, training.

Ray takes a second to import, so that functions import it: `--help` and bad settings need not wait for it.
"""
