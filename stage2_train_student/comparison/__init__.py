"""Comparing finished or running experiments on one self-contained page, from what their run folders hold.

`training_runs` reads run folders, `experiments` groups them over seeds, `results` computes what is compared,
`fairness` says which trained alike, `statistics` how sure a difference is, `verdict` gives the answer in a sentence and
what it rests on. `charts` draws, `scan_pictures` runs students on scans, `page` and `tables` write,
`command` is the command.
"""
