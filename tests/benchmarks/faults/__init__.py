"""The attack on the project's files as a program: kinds of faults, one module each, and what they share.

`children` runs commands as processes of their own, `verdicts` judges and counts how they ended, `workshop` makes the
small dataset, teacher, stores and runs that are attacked, `damage` spoils bytes. Every other module is one kind of
attack and names its kinds in `KINDS`.
"""
