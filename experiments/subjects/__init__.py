"""What is measured on: convolutions of nine networks, whole networks, images."""
