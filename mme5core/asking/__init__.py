"""Many questions to a multimodal LLM, asked safely: rates, budget, retries, batches, a log and a cache of answers."""
