"""What is in a folder of the SemanticKITTI layout, without a dataset around it."""

from pathlib import Path

from common.scans.formats.semantic_kitti import SemanticKitti


def present_sequences(root):
    return SemanticKitti(Path(root), {}).sequences()


def list_scans(root, sequences):
    return SemanticKitti(Path(root), {}).scans(sequences)


def hidden_entries(root, sequences):
    return SemanticKitti(Path(root), {}).left_out(sequences)


def read_points(root, scan):
    return SemanticKitti(Path(root), {}).points(scan)


def has_labels(root, scan):
    return SemanticKitti(Path(root), {}).has_labels(scan)


def read_raw_labels(root, scan, points):
    return SemanticKitti(Path(root), {}).raw_labels(scan, points)
