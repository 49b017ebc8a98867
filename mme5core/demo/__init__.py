"""What the demo needs that real users bring: pictures with names, a teacher, a small base model."""
