"""Making training data with a teacher."""
