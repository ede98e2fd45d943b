"""Takes artifacts to devices: packages and project files for Android and Windows."""
