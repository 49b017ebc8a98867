"""Generation of training samples by a multimodal LLM: plan, prompt, ask, validate."""
