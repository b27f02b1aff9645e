"""SparCL bench: sparse continual learning as a reproducible benchmark and ablation suite.

The package imports nothing heavy by itself; import the module you need (``sparcl.trainer``, ``sparcl.cell``, ...).
"""

__version__ = "0.1.0"
