"""Configuration: strict Kconfig in, typed and hashed run specifications out."""
