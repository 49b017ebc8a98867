"""Writing training samples with a multimodal LLM: plan, prompt, ask, validate."""
