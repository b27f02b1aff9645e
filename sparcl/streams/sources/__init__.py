"""The bundled data sets, one module each; every module's ``SOURCES`` is found by scanning this package."""
