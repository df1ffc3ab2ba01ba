"""How well does Q(z|X) match N(0, I)? Measures of the mismatch of a VAE's codes and its prior."""
