"""Headless notebook runs, the report page and the explorer."""
