"""What happens before an update is seen: data, models, defenses, and how an update is made."""
