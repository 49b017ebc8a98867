"""The job `synth`: training samples written by a multimodal LLM that looks at pictures."""
