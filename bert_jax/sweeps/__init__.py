"""Many trainings: trials, engines, results and reports."""
