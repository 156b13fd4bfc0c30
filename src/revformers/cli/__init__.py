"""The command line: ``revformers COMMAND``."""
