"""Tasks, trainer, studies, reports and the command line."""
