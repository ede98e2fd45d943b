"""Turns tensors into the number formats that artifacts store."""
