"""Charts of tidy frames, verdicts, picture panels, embedding maps and the query browser.

Notebooks use ``from rvlr_lib.figures import browser, charts, panels, projection, verdicts``.
"""
