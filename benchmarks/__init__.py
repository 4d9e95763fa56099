"""What is fast and by how much: ratios measured on your machine."""
