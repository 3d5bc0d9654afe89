"""`python -m stage2_train_student`: the commands of stage two alone."""

import polar_distill

main = polar_distill.stage_two

if __name__ == "__main__":
    polar_distill.main(main, "python -m stage2_train_student")
