"""The executable study behind JMIR Form Res 2026;10:e89077: Chinese counseling models for motivational interviewing."""

__version__ = "0.1.0"
