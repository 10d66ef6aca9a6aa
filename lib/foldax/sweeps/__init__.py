"""Sweeps: many configs and seeds as few compiled programs; searches, records and reports."""
