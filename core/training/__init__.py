"""Training: a student, its samples, the teacher's signal, and the loop that joins them."""
