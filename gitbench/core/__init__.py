"""What every room builds on: SPECs, components, errors, progress, time, randomness and memory."""
