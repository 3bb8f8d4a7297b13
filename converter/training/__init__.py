"""Batches for training: orders, crops, threads, labels. Knows no model and no device."""
