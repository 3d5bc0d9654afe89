"""Training a teacher where no published checkpoint fits."""
