"""The history of the schema; run with ``headrace migrate``."""
