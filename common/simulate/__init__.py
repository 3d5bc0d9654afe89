"""Simulated LiDAR scans of made-up streets, in the SemanticKITTI layout, with exact labels and instances."""
