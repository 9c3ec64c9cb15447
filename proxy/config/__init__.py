"""The configuration: one YAML file, read strictly."""
