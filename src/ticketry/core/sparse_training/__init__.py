"""What is done to a network while it trains: masks held, shrunk and moved, penalties, and when to prune."""
