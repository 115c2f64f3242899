"""What a mask costs (seconds, bytes, multiplications) as numbers, and the best mask that a budget pays for."""
