"""How bytes move: one interface, one implementation a transport (base.py says what they share)."""
