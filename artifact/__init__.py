"""What lies on disk behind an export, declared in one place for those who write it and those who read it."""
