"""Kronecker-factored curvature of layers: factors, moments, products and inverses."""
