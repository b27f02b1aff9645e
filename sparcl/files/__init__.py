"""Files that are whole or absent, and YAML that is read strictly."""
