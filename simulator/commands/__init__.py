"""What each command of ``simulate`` does. ``simulator.cli`` reads the words and calls these."""
