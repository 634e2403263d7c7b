"""Scripts around the packages: generated code, local supervision, the demo."""
