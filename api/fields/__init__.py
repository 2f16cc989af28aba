"""The request fields that clients send: one table of what becomes of each, and the reading of bodies by it."""
