"""What processes say to each other, and how bytes move between them."""
