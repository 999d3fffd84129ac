"""The words of the house: Request, BatchShape, Trace, RunLog, ModelSpec, Gpu, Link, and the five seats.

Everything here is plain data and Protocols; imports numpy only, and nothing from the rest of kvsim.
To add a policy you do not touch this package: read ``seats.py`` for the shape to match.
"""
