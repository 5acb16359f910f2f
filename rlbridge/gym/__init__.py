"""The async client of NeMo Gym reward servers, and a small server that speaks the same wire."""
