"""Reports: notebooks run headless, report page, explorer."""
