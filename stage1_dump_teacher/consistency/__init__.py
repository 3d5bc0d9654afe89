"""How good targets are that were carried to another view."""
