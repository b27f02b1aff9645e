"""SparCL bench: sparse continual learning as a reproducible benchmark and ablation suite.

The package imports nothing heavy by itself; import the module you need: ``sparcl.resolve.make`` makes a
cell, ``sparcl.trainer`` trains it, ``sparcl.running.runner.run_cell`` writes its record (docs/python.md).
"""

__version__ = "0.1.0"
