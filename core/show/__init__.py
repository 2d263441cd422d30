"""Rows and rollouts for a person's eyes: on the terminal, or as one HTML page."""
