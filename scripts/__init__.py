"""One thin program per make target; what they do lives in lib/ and gpt2/."""
