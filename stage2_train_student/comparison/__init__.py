"""Training many experiments (`sweep_command`), and comparing runs on one self-contained page (`command`).

Follow a comparison: `training_runs`, `experiments`, `results`, `verdict`, `page`.
"""
