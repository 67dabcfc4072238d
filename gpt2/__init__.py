"""GPT-2 and the mechanisms under study."""
