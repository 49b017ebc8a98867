"""The jobs: configuration in, Ray wiring, one call into mme5core, files out."""
