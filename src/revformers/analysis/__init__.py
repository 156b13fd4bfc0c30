"""Stability of dynamics: closed forms of the linear test equation, and measurements on the layers of a real model."""
