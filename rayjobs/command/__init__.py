"""The command line that all jobs share: grammar, recipes and overrides, outcomes and exit codes."""
