"""The demo's substitutes for a user's data: pictures with names, a teacher, a small base model."""
