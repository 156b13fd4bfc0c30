"""Random set-ups, in which every policy must give the stored gradient to the bit or say why it cannot.

``python -m lab.fuzz --cases 200 --seed 0`` runs 200 of them and prints a line for each that fails, with its
seed; ``--cases 1 --seed N`` runs that one again and shows what it is.
"""
