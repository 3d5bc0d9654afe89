"""Scans in 3D, as one page that a browser opens."""
