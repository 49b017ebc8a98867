"""The jobs: configuration in, Ray wiring, calls into mme5core, files out."""
