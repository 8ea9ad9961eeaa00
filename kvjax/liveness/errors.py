"""The error of the analyser."""


class AnalysisError(ValueError):
  """The program cannot be analysed exactly; the message names the equation."""
