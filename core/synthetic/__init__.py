"""Data made by models from a description of a domain: questions that differ, answers that are checked."""
