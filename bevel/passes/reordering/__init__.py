"""What puts channels in an order, and what an order is worth."""
