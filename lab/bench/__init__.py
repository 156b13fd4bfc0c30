"""Measurements of memory and step time, the comparison of the quickstart, and its report."""
