"""Pictures that only a lesson draws."""
