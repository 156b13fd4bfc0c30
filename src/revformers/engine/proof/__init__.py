"""Proof that a second evaluation of a layer is the first one."""
