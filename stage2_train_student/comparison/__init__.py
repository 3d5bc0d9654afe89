"""Comparing finished or running experiments on one self-contained page, from what their run folders hold.

`training_runs` reads run folders, `experiments` groups them over seeds, `results` computes what is compared, `curves`
and `charts` draw it, `scan_pictures` runs students on scans, `page` and `tables` write it, `command` is the command.
"""
