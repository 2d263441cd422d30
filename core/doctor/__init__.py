"""`doctor`: what is here, what is missing and the line that mends it; what a file is; what a teacher can do."""
