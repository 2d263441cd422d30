"""Tasks that need no download. lm-eval reads the YAML files and takes the functions that they name from the modules
beside them, one file at a time: so these modules import nothing of ours.
"""
