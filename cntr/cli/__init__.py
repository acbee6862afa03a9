"""The command line: options, reports, the manual; the one place that prints."""
