"""What finished runs say, from their directories alone. No torch, no training."""
