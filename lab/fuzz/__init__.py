"""Random set-ups in which every policy must give the stored gradient to the bit or explain why it cannot.

``python -m lab.fuzz --cases 200 --seed 0`` runs 200 of them and prints a line for each failure, with its seed;
``--cases 1 --seed N`` runs one again and describes it.
"""
