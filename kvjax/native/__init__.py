"""What XLA calls of kvjax on a CPU: compiled at installation, optional."""
