"""Charts of tidy frames, verdicts, picture panels, embedding maps and the query browser."""
