"""The demo: every job on a real corpus, as a user would run them."""
