"""Shipping a student: export to files that other programs run, quantising, and how long a scan takes."""
