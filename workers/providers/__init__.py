"""Adapters to what generates text; each is two translations and one transport."""
