"""A student's training: experiment, data, step, state."""
