"""Sparse-training baselines, one file per method.

Every module of this package is imported when methods are listed (entry-point group ``sparcl.methods``), so a file that
registers a policy is all that a new method needs. The sections of a file are always the same: rule with equation,
source and adaptation to the stream (docstring), parameters, the run, the plan.
"""
