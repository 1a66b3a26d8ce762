"""The cluster manager: who is alive, which targets serve. Decisions are pure, server.py acts."""
