"""What train.py's loop calls."""
