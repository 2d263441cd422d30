"""What lives in files: prompts, rows, journals, runs; and the progress events that a command reports."""
