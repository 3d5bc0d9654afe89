"""`python -m stage1_dump_teacher`: the commands of stage one alone."""

import polar_distill

main = polar_distill.stage_one

if __name__ == "__main__":
    polar_distill.main(main, "python -m stage1_dump_teacher")
