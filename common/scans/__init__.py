"""Scans: datasets and their files, labels, the polar grid, views, batches."""
