"""The executable study behind JMIR Form Res 2026;10:e89077: Chinese counseling models for motivational interviewing."""

from mi_llm.parent import end_with_run

__version__ = "0.1.0"

end_with_run()  # before anything else is imported, which takes seconds
