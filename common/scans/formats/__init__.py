"""Formats of scans on disk: one class in one file each, see `common.scans.scan_files`."""
