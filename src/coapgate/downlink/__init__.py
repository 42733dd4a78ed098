"""What becomes of a message for a device: a notification, a request, or one that waits."""
