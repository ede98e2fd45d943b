"""Adapters that give other libraries an exported model."""
