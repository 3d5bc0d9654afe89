"""What comes after training: evaluate, predict, render."""
