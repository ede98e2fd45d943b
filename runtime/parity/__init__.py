"""Compares an exported model with the reference: logits, tokens, tasks, layers."""
