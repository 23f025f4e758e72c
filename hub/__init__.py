"""The ground floor: what the project knows, and the only door to the Hub. Never imports torch."""
