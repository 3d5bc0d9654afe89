"""Students: the networks that are trained. One class in one file each, see `student.py`."""
