"""Sweeps: many configs and seeds trained by few compiled programs, with searches, statistics and reports."""
