"""Figures: charts, picture panels, projections and the query browser."""
