"""See the layer order in CONTRIBUTING.md."""
