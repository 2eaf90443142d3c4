"""Make a trained network smaller or faster, and say what is lost."""
