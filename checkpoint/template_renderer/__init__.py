"""The process that renders chat templates, and its limits: a template is a program that came with a checkpoint."""
