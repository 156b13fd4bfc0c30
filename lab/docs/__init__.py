"""Builds parts of the documentation: tables from committed results, and the site's first page from the README."""
