"""The faults of a training, and what a user sees of each: `python -m lab.studies.faults`."""
