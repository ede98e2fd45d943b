"""Reads a Hugging Face checkpoint: config, weights, tokenizer and chat template, every byte checked before use."""
