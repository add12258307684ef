"""The composition root: builds the collaborators of a job, runs it, records it.

The command line and the web page call these functions and nothing below them.
"""
