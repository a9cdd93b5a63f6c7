"""What runs engines, without torch."""
