"""What the documentation measures. Each module is a program; docs name the command."""
