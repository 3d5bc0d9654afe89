"""What a student learns from a teacher's targets: one file a term, put together in `terms.py`.

The terms are those of Jiang et al. (knowledge distillation from Cylinder3D to PolarNet) and of the code published
with it; where the two cannot both be followed, the docstrings say what is done here.
"""
