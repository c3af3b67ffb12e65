"""What both faces of the project show alike."""
