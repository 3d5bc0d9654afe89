"""Settings that travel with the program: datasets, teachers, experiments, the demo and the proof."""
