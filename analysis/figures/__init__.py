"""The figures, one module each; :mod:`analysis.catalog` says which a plan has. How to read them: docs/figures.md."""
