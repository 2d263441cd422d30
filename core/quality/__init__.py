"""What data are worth: duplicates, contamination, what is wrong with single rows, what a teacher says of them."""
