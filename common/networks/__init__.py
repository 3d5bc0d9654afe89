"""Networks that both stages use: a teacher of one is a student of the other."""
