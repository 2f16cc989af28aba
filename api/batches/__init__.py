"""Batches: many rows under one order, from the upload to the results."""
